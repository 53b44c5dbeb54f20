//! Files of every kind, read row by row.

use std::io::Write;

use sluice_core::Datatype;

use super::*;

fn reading(inputs: &[(&str, Datatype, &[Option<usize>])]) -> Reading {
    let inputs = inputs.iter().map(|(name, datatype, sizes)| InputSpec {
        name: name.to_string(),
        datatype: *datatype,
        sizes: sizes.to_vec(),
    });
    Reading { inputs: inputs.collect(), format: None, columns: vec![], header: Header::Auto, consumed: Arc::default() }
}

/// The line, and the row or what is wrong with it.
type Line = (u64, Result<Vec<Field>, String>);

fn read(reading: &Reading, name: &str, content: &[u8]) -> Result<Vec<Line>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join(name);
    std::fs::write(&path, content)?;
    reading.open(&path)?.map(|item| item.map(|item| (item.line, item.row))).collect()
}

fn floats(field: &Field) -> Vec<f32> {
    field.data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

fn one() -> Reading {
    reading(&[("x", Datatype::Fp32, &[Some(2)])])
}

#[test]
fn csv_columns_are_chosen_by_number_or_name_and_bad_lines_are_told_apart() {
    let mut plain = one();
    plain.columns = vec!["2,0".into()];
    let rows = read(&plain, "a.csv", b"1,x,3\n4,y,5\n6,z\nq,w,1\n").expect("readable");
    assert_eq!(rows.len(), 3, "a first line that is not all numbers is taken for names");
    plain.header = Header::No;
    let rows = read(&plain, "a.csv", b"1,x,3\n4,y,5\n6,z\nq,w,1\n").expect("readable");
    assert_eq!(floats(&rows[0].1.as_ref().expect("a row")[0]), [3.0, 1.0]);
    assert_eq!(rows[2].0, 3);
    assert_eq!(rows[2].1, Err("it has 2 columns, column 2 is missing".into()));
    assert_eq!(rows[3].1, Err("column 0: `q` is not FP32".into()));

    let mut named = one();
    named.columns = vec!["b,a".into()];
    let rows = read(&named, "a.csv", b"a,b,label\n1,2,x\n").expect("readable");
    assert_eq!((rows[0].0, floats(&rows[0].1.as_ref().expect("a row")[0])), (2, vec![2.0, 1.0]));
    for (columns, expected) in
        [("c", "no column `c`"), ("0-9", "no column 9"), ("", "names no column"), ("0", "1 values for input `x`")]
    {
        named.columns = vec![columns.into()];
        let error = read(&named, "a.csv", b"a,b,label\n1,2,x\n").expect_err("a wrong choice");
        assert!(format!("{error:#}").contains(expected), "{error:#}");
    }
    let error = read(&one(), "a.csv", b"1,2,3\n").expect_err("three columns for two values");
    assert!(format!("{error:#}").contains("choose them, such as --columns 0-1"), "{error:#}");
}

#[test]
fn jsonl_rows_may_be_objects_or_values_flat_or_shaped() {
    let shaped = reading(&[("x", Datatype::Fp32, &[Some(2), Some(1)])]);
    let text = b"{\"x\": [[1],[2]], \"label\": 7}\n\n[3,4]\n{\"y\": 1}\n[1,2,3]\n{oops\n[[1],[\"a\"]]\n";
    let rows = read(&shaped, "a.jsonl", text).expect("readable");
    assert_eq!(rows.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3, 4, 5, 6, 7]);
    assert_eq!(floats(&rows[0].1.as_ref().expect("a row")[0]), [1.0, 2.0]);
    assert_eq!(rows[1].1.as_ref().expect("a row")[0].shape, [2, 1]);
    for (row, expected) in
        [(2, "it has no `x`"), (3, "3 values for input `x`"), (4, "it is not JSON"), (5, "is not FP32")]
    {
        let reason = rows[row].1.as_ref().expect_err("a bad line");
        assert!(reason.contains(expected), "{reason}");
    }
    let varying = reading(&[("ids", Datatype::Int64, &[None])]);
    let rows = read(&varying, "a.jsonl.gz", &gzip(b"[1,2,3]\n[4]\n")).expect("readable");
    assert_eq!(rows[0].1.as_ref().expect("a row")[0].shape, [3]);
    assert_eq!(rows[1].1.as_ref().expect("a row")[0].shape, [1]);
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(content).expect("memory");
    encoder.finish().expect("memory")
}

/// An NPY file of version 1.0, as numpy.save writes it.
fn npy(kind: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    while (header.len() + 11) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[test]
fn numpy_arrays_are_read_row_by_row_and_converted_where_they_fit() {
    let doubles: Vec<u8> = [1.5_f64, 2.0, 3.0, 4.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let rows = read(&one(), "a.npy", &npy("<f8", "(2, 2)", &doubles)).expect("readable");
    assert_eq!(floats(&rows[0].1.as_ref().expect("a row")[0]), [1.5, 2.0]);
    assert_eq!(rows[1].0, 2);
    let error = read(&one(), "a.npy", &npy("<f8", "(3, 2)", &doubles)).expect_err("it is cut");
    assert!(format!("{error:#}").contains("ends before its last row"), "{error:#}");
    let error = read(&one(), "a.npy", b"not numpy").expect_err("not an array");
    assert!(format!("{error:#}").contains("not a NumPy array"), "{error:#}");
    let integers = reading(&[("x", Datatype::Uint8, &[Some(2)])]);
    let rows = read(&integers, "a.npy", &npy("<f8", "(2, 2)", &doubles)).expect("readable");
    assert!(rows[0].1.is_err() && rows[1].1.is_ok(), "1.5 is no integer, 3.0 is");
}

#[test]
fn an_archive_gives_each_input_its_array() {
    let inputs = reading(&[("a", Datatype::Uint8, &[Some(2)]), ("b", Datatype::Uint8, &[])]);
    let mut archive = zip::ZipWriter::new(io::Cursor::new(Vec::new()));
    for (name, content) in [("b.npy", npy("|u1", "(2,)", &[9, 8])), ("a.npy", npy("|u1", "(2, 2)", &[1, 2, 3, 4]))] {
        archive.start_file(name, zip::write::SimpleFileOptions::default()).expect("memory");
        archive.write_all(&content).expect("memory");
    }
    let bytes = archive.finish().expect("memory").into_inner();
    let rows = read(&inputs, "a.npz", &bytes).expect("readable");
    let second = rows[1].1.as_ref().expect("a row");
    assert_eq!((&second[0].data[..], &second[1].data[..]), (&[3, 4][..], &[8][..]));
    let other = reading(&[("c", Datatype::Uint8, &[])]);
    let error = read(&other, "a.npz", &bytes).expect_err("no such array");
    assert!(format!("{error:#}").contains("no array `c`; it holds"), "{error:#}");
}
