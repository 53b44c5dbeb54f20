//! JSON Lines, and JSON that is printed otherwise.

use super::*;

#[test]
fn rows_may_be_objects_or_values_flat_or_shaped() {
    let shaped = reading(&[("x", Datatype::Fp32, &[Some(2), Some(1)])]);
    let text = b"{\"x\": [[1],[2]], \"label\": 7}\n\n[3,4]\n{\"y\": 1}\n[1,2,3]\n{oops\n[[1],[\"a\"]]\n[[1,2]]\n[[1],[]]\n[1,[2]]\n[true,1]\n{\"x\":{\"0\":1}}\n";
    let rows = read(&shaped, "a.jsonl", text).expect("readable");
    assert_eq!(rows.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
    assert_eq!(good(&rows[0]), [1.0, 2.0]);
    assert_eq!(rows[1].1.as_ref().expect("a row")[0].shape, [2, 1]);
    for (row, expected) in [
        (2, "it has no `x`"),
        (3, "3 values for input `x`"),
        (4, "it is not JSON"),
        (5, "\"a\" is not FP32"),
        (6, "a row's shape is [1, 2], input `x` takes FP32, 2x1 per row"),
        (7, "not all of the same length"),
        (8, "not all of the same depth"),
        (9, "`true` is not FP32: write 1 or 0"),
        (10, "each row is an object of its own"),
    ] {
        assert!(bad(&rows[row]).contains(expected), "{}", bad(&rows[row]));
    }
    let varying = reading(&[("ids", Datatype::Int64, &[None])]);
    let rows = read(&varying, "a.jsonl.gz", &gzip(b"[1,2,3]\n[4]\n")).expect("readable");
    assert_eq!(rows[0].1.as_ref().expect("a row")[0].shape, [3]);
    assert_eq!(rows[1].1.as_ref().expect("a row")[0].shape, [1]);
    // As many values, in arrays of other lengths.
    let ragged = reading(&[("x", Datatype::Fp32, &[Some(3), Some(2)])]);
    let rows = read(&ragged, "a.jsonl", b"[[1,2],[3],[4,5,6]]\n").expect("readable");
    assert!(bad(&rows[0]).contains("not all of the same length: one has 2, one 1"), "{:?}", rows[0]);
}

#[test]
fn numbers_that_json_has_no_digits_for_are_read_as_python_and_spark_write_them() {
    let text = b"\xef\xbb\xbf{\"x\":[NaN,2]}\n{\"x\":[Infinity,-Infinity]}\n{\"x\":[null,\"NaN\"]}\n[\"-Infinity\",1e39]\n[1e400,1]\n";
    let rows = read(&one(), "a.jsonl", text).expect("readable");
    assert!(good(&rows[0])[0].is_nan() && good(&rows[0])[1] == 2.0, "a byte order mark is no matter");
    assert_eq!(good(&rows[1]), [f32::INFINITY, f32::NEG_INFINITY]);
    assert!(good(&rows[2]).iter().all(|value| value.is_nan()));
    assert!(bad(&rows[3]).contains("out of range for FP32") && bad(&rows[4]).contains("out of range"));
    let words = reading(&[("x", Datatype::Bytes, &[]), ("n", Datatype::Int32, &[])]);
    let text = b"{\"x\": \"NaN \\\"Infinity\\\"\", \"n\": 1}\n{\"x\": NaN, \"n\": 1}\n{\"x\": \"a\", \"n\": NaN}\n";
    let rows = read(&words, "a.jsonl", text).expect("readable");
    assert_eq!(rows[0].1.as_ref().expect("a row")[0].data[4..], b"NaN \"Infinity\""[..]);
    assert!(bad(&rows[1]).contains("NaN is not text"), "{:?}", rows[1]);
    assert!(bad(&rows[2]).contains("NaN is not INT32"), "{:?}", rows[2]);
}

#[test]
fn arrays_and_pretty_printed_rows_are_read_by_their_lines() {
    let pretty = b"[\n  {\n    \"x\": [\n      1,\n      2\n    ]\n  },\n  {\n    \"x\": [3, \"]\"]\n  },\n  {\"x\": [5, 6]}\n]\n";
    for name in ["a.json", "a.jsonl"] {
        let rows = read(&one(), name, pretty).expect("readable");
        assert_eq!(rows.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [2, 8, 11], "{name}");
        assert_eq!((good(&rows[0]), good(&rows[2])), (vec![1.0, 2.0], vec![5.0, 6.0]));
        assert!(bad(&rows[1]).contains("is not FP32"));
    }
    let good_ones: [(&str, &[u8]); 8] = [
        ("a.json", b"[{\"x\":[1,2]},{\"x\":[3,4]}]"),
        ("a.jsonl", b"[{\"x\":[1,2]},{\"x\":[3,4]}]\n"),
        ("a.json", b"[[1,2],[3,4]]"),
        ("a.json", b"[\n[1,2],\n[3,4]\n]"),
        ("a.json", b"{\n\"x\":[1,2]\n}\n{\n\"x\":[3,4]\n}\n"),
        ("a.json", b"{\"x\":[1,2]}\n{\"x\":[3,4]}\n"),
        ("a.json", b"[1,2]\n[3,4]\n"),
        ("a.jsonl", b"[1,2]\n[3,4]"),
    ];
    for (name, text) in good_ones {
        let rows = read(&one(), name, text).expect("readable");
        assert_eq!(rows.iter().map(good).collect::<Vec<_>>(), [[1.0, 2.0], [3.0, 4.0]], "{name}: {text:?}");
    }
    assert_eq!(good(&read(&one(), "a.json", b"[1,2]\n").expect("one row")[0]), [1.0, 2.0]);
    assert!(read(&one(), "a.json", b"[]").expect("no rows").is_empty());
    for (text, expected) in [
        (&b"[\n{\"x\":[1,2]}\n"[..], "has no end"),
        (b"[\n{\"x\":[1,2]},", "has no end"),
        (b"[\n{\"x\":[1,2", "ends within the row that begins at line 2"),
        (b"[\n[1,2] [3,4]]", "where a comma belongs"),
        (b"[\n[1,2],\n]", "a row is missing"),
        (b"[\n[1,2]]\n[3]", "more comes after"),
    ] {
        let error = refusal(&one(), "a.json", text);
        assert!(error.contains(expected), "{error}");
    }
}
