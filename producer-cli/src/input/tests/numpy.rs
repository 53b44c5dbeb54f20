//! NumPy's arrays and archives.

use half::f16;

use super::*;

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

fn doubles(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn archive(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, content) in members {
        archive.start_file(*name, stored).expect("memory");
        archive.write_all(content).expect("memory");
    }
    archive.finish().expect("memory").into_inner()
}

#[test]
fn arrays_are_read_row_by_row_and_converted_where_they_fit() {
    let four = doubles(&[1.5, 2.0, 3.0, 4.0]);
    let rows = read(&one(), "a.npy", &npy("<f8", "(2, 2)", &four)).expect("readable");
    assert_eq!((rows[1].0, good(&rows[0])), (2, vec![1.5, 2.0]));
    assert!(refusal(&one(), "a.npy", &npy("<f8", "(3, 2)", &four)).contains("ends before its last row"));
    assert!(refusal(&one(), "a.npy", &npy("<f8", "(1, 2)", &four)).contains("goes on after its last row"));
    assert!(refusal(&one(), "a.npy", b"not numpy").contains("not a NumPy array"));
    assert!(refusal(&one(), "a.npy", &npy("|O", "(1, 2)", b"")).contains("array.astype"));
    let swapped: Vec<u8> = [1.5_f32, 2.0].iter().flat_map(|value| value.to_be_bytes()).collect();
    assert_eq!(good(&read(&one(), "a.npy", &npy(">f4", "(1, 2)", &swapped)).expect("readable")[0]), [1.5, 2.0]);
    let integers = reading(&[("x", Datatype::Uint8, &[Some(2)])]);
    let rows = read(&integers, "a.npy", &npy("<f8", "(2, 2)", &four)).expect("readable");
    assert_eq!(bad(&rows[0]), "`x`: value 0: `1.5` is not UINT8");
    assert!(rows[1].1.is_ok(), "3.0 is an integer");
}

#[test]
fn conversions_keep_what_the_target_holds_and_refuse_what_is_out_of_its_range() {
    let values = [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1e39, 0.1, -0.0];
    let rows = read(&one(), "a.npy", &npy("<f8", "(3, 2)", &doubles(&values))).expect("readable");
    assert_eq!(good(&rows[0]), [f32::INFINITY, f32::NEG_INFINITY]);
    assert!(bad(&rows[1]).contains("value 1: `1e39` is out of range for FP32"), "{:?}", rows[1]);
    assert_eq!(good(&rows[2])[1].to_bits(), (-0.0_f32).to_bits());
    let halves: Vec<u8> = [f16::INFINITY, f16::NAN].iter().flat_map(|value| value.to_le_bytes()).collect();
    let rows = read(&one(), "a.npy", &npy("<f2", "(1, 2)", &halves)).expect("readable");
    assert!(good(&rows[0])[0].is_infinite() && good(&rows[0])[1].is_nan());

    let large: Vec<u8> = [16_777_217_i64, 3, 1 << 40, 4].iter().flat_map(|value| value.to_le_bytes()).collect();
    let (lossy, said) = heard(one());
    let rows = read(&lossy, "a.npy", &npy("<i8", "(2, 2)", &large)).expect("readable");
    assert_eq!(good(&rows[0]), [16_777_216.0, 3.0]);
    assert!(said.lock().expect("no panic")[0].contains("16777217 became 16777216"));
    let mut exact = one();
    exact.options.numbers.exact = true;
    let rows = read(&exact, "a.npy", &npy("<i8", "(2, 2)", &large)).expect("readable");
    assert_eq!((rows[0].1.is_err(), rows[1].1.is_ok()), (true, true), "2^40 is exact");
    let rows = read(&exact, "a.npy", &npy("<f8", "(2, 2)", &doubles(&[0.1, 1.0, 0.5, f64::NAN]))).expect("readable");
    assert_eq!((rows[0].1.is_err(), rows[1].1.is_ok()), (true, true), "0.1 has other bits as a single");

    // A 64-bit integer goes through no float on its way.
    let wide = reading(&[("x", Datatype::Uint64, &[])]);
    let rows =
        read(&wide, "a.npy", &npy("<i8", "(2,)", &[i64::MAX, -1].map(i64::to_le_bytes).concat())).expect("readable");
    assert_eq!(rows[0].1.as_ref().expect("a row")[0].data[..], i64::MAX.to_le_bytes());
    assert!(bad(&rows[1]).contains("`-1` is out of range for UINT64"));
}

#[test]
fn an_array_of_another_shape_is_refused_though_it_has_as_many_values() {
    let image = reading(&[("x", Datatype::Uint8, &[Some(3), Some(2), Some(2)])]);
    let twelve = [7; 12];
    for (shape, row) in [("(1, 2, 2, 3)", "[2, 2, 3]"), ("(1, 3, 4)", "[3, 4]")] {
        for (name, content) in
            [("a.npy", npy("|u1", shape, &twelve)), ("a.npz", archive(&[("x.npy", npy("|u1", shape, &twelve))]))]
        {
            let error = refusal(&image, name, &content);
            assert!(
                error.contains(&format!("a row's shape is {row}, input `x` takes UINT8, 3x2x2 per row")),
                "{error}"
            );
        }
    }
    // One dimension may stand for several, as in JSON.
    let rows = read(&image, "a.npy", &npy("|u1", "(1, 12)", &twelve)).expect("readable");
    assert_eq!(rows[0].1.as_ref().expect("a row")[0].shape, [3, 2, 2]);
    assert!(refusal(&image, "a.npy", &npy("|u1", "(12,)", &twelve)).contains("1 value for input `x`"));
}

#[test]
fn an_archive_gives_each_input_its_array_and_its_checksums_count() {
    let inputs = reading(&[("a", Datatype::Uint8, &[Some(2)]), ("b", Datatype::Uint8, &[])]);
    let bytes = archive(&[("b.npy", npy("|u1", "(2,)", &[9, 8])), ("a.npy", npy("|u1", "(2, 2)", &[1, 2, 3, 4]))]);
    let rows = read(&inputs, "a.npz", &bytes).expect("readable");
    let second = rows[1].1.as_ref().expect("a row");
    assert_eq!((&second[0].data[..], &second[1].data[..]), (&[3, 4][..], &[8][..]));
    let other = reading(&[("c", Datatype::Uint8, &[])]);
    assert!(refusal(&other, "a.npz", &bytes).contains("no array `c`; it holds"));

    let mut damaged = bytes;
    let at = damaged.windows(4).position(|four| four == [1, 2, 3, 4]).expect("it is stored as it is");
    damaged[at] ^= 0x40;
    let error = refusal(&inputs, "a.npz", &damaged);
    assert!(error.contains("its array `a`: it is damaged: Invalid checksum"), "{error}");
    // One that ends with its last row is read to the checksum too.
    let mut zipped = gzip(&npy("|u1", "(2, 2)", &[1, 2, 3, 4]));
    let at = zipped.len() - 8;
    zipped[at] ^= 1;
    refusal(&reading(&[("a", Datatype::Uint8, &[Some(2)])]), "a.npy.gz", &zipped);
}

#[test]
fn an_array_tells_what_it_is_whatever_its_name() {
    let rows = read(&one(), "rows", &npy("<f4", "(1, 2)", &[0; 8])).expect("told by its beginning");
    assert_eq!(good(&rows[0]), [0.0, 0.0]);
    let error = refusal(&one(), "rows", b"1,2\n");
    assert!(error.contains("its name does not tell what it is: say --format"), "{error}");
}
