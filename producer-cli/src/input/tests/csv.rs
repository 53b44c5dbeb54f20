//! CSV as people and their tools write it.

use super::*;
use crate::cli::Header;

fn with(change: impl FnOnce(&mut Files)) -> Reading {
    let mut reading = one();
    change(&mut reading.options);
    reading
}

fn columns(text: &str) -> Reading {
    with(|options| options.columns = vec![text.into()])
}

#[test]
fn columns_are_chosen_by_number_or_name_and_bad_lines_are_told_apart() {
    let mut plain = columns("2,0");
    plain.options.header = Header::No;
    let rows = read(&plain, "a.csv", b"1,x,3\n4,y,5\n6,z\nq,w,1\n7,w,1,9\n").expect("readable");
    assert_eq!(good(&rows[0]), [3.0, 1.0]);
    assert_eq!(rows[2], (3, Err("it has 2 fields, the other lines have 3".into())));
    assert_eq!(rows[3], (4, Err("column 0: `q` is not FP32".into())));
    assert_eq!(rows[4], (5, Err("it has 4 fields, the other lines have 3".into())));
    // Empty lines count, an ending may have two characters, and a field several lines.
    let rows = read(&plain, "a.csv", b"\r\n1,x,3\r\n\r\n4,\"y\r\ny\",5\r\n\n6,z").expect("readable");
    assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), [2, 4, 7]);
    // A line that is cut does not make the others wrong.
    let rows = read(&plain, "a.csv", b"6,1\n1,x,3\n4,y,5\n").expect("readable");
    assert_eq!((bad(&rows[0]), good(&rows[1])), ("it has 2 fields, the other lines have 3", vec![3.0, 1.0]));

    let rows = read(&columns("b,a"), "a.csv", b"a,b,label\n1,2,x\n1,2\n").expect("readable");
    assert_eq!((rows[0].0, good(&rows[0])), (2, vec![2.0, 1.0]));
    assert_eq!(rows[1], (3, Err("it has 2 fields, the header has 3".into())));
    for (chosen, expected) in
        [("c", "no column `c`"), ("0-9", "no column 9"), ("", "names no column"), ("0", "1 value for input `x`")]
    {
        let error = refusal(&columns(chosen), "a.csv", b"a,b,label\n1,2,x\n");
        assert!(error.contains(expected), "{error}");
    }
    let error = refusal(&one(), "a.csv", b"1.5,2,3\n");
    assert!(
        error.contains("it has 3 columns, input `x` takes 2 values: choose them, such as --columns 0-1"),
        "{error}"
    );
}

#[test]
fn a_number_is_a_position_and_one_that_is_also_another_columns_name_is_asked_about() {
    // As pandas writes columns that have no names, and its index before them.
    let pandas = b",0,1,2\n0,1.5,2,7\n1,3,4,8\n";
    let named = |chosen: &str| with(|options| (options.columns, options.header) = (vec![chosen.into()], Header::Yes));
    let advice = refusal(&with(|options| options.header = Header::Yes), "a.csv", pandas);
    assert!(advice.contains("--columns number:1-3 without it or number:0-3 with it"), "{advice}");
    for chosen in ["1-2", "2,3", "x=1-2"] {
        let error = refusal(&named(chosen), "a.csv", pandas);
        assert!(error.contains("which is named `") && error.contains("say number:"), "{chosen}: {error}");
    }
    let error = refusal(&named("1-2"), "a.csv", pandas);
    assert!(
        error.contains(
            "`1` may be column 1, which is named `0`, or the column named `1`, which is column 2 counted from 0"
        ),
        "{error}"
    );
    for (chosen, expected) in [
        ("number:1-2", [1.5, 2.0]),
        ("number:1,number:3", [1.5, 7.0]),
        ("name:1-2", [2.0, 7.0]),
        ("name:1,name:0", [2.0, 1.5]),
    ] {
        assert_eq!(good(&read(&named(chosen), "a.csv", pandas).expect(chosen)[0]), expected, "{chosen}");
    }
    // Where number and name are one column, nobody need say which.
    assert_eq!(good(&read(&named("0-1"), "a.csv", b"0,1,2\n1.5,2,7\n").expect("one column")[0]), [1.5, 2.0]);
    assert_eq!(
        good(&read(&columns("name:2019,name:2020"), "a.csv", b"2019,2020\n1.5,2\n").expect("names")[0]),
        [1.5, 2.0]
    );
    let error = refusal(&named("2019"), "a.csv", b"2019,2020\n1.5,2\n");
    assert!(error.contains("say number:2019 or name:2019"), "{error}");
    for (chosen, expected) in [("name:9", "no column `9`"), ("number:a", "no column `a`"), ("number:9", "no column 9")]
    {
        let error = refusal(&named(chosen), "a.csv", pandas);
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_header_is_told_and_one_that_cannot_be_told_is_asked_about() {
    let (reading, said) = heard(one());
    let rows = read(&reading, "a.csv", b"a,b\n1,2\n3,4\n").expect("readable");
    assert_eq!(rows.len(), 2);
    let said = said.lock().expect("no panic").join("\n");
    assert!(said.contains("is taken for column names (a,b); --header no takes it for a row"), "{said}");
    // Choosing by name says that there are names.
    let (reading, said) = heard(columns("a,b"));
    assert_eq!(read(&reading, "a.csv", b"a,b\n1,2\n").expect("readable").len(), 1);
    assert!(said.lock().expect("no panic").is_empty());

    let pandas = b"0,1\n1.5,2\n3,4\n";
    let error = refusal(&one(), "a.csv", pandas);
    assert!(error.contains("its first line (0,1) may be a row or column names: say --header no"), "{error}");
    for (header, rows) in [(Header::Yes, 2), (Header::No, 3)] {
        assert_eq!(read(&with(|options| options.header = header), "a.csv", pandas).expect("readable").len(), rows);
    }
    // A value is missing, and the row is not lost for it.
    let rows = read(&one(), "a.csv", b",2\n5,6\n").expect("readable");
    assert!(bad(&rows[0]).contains("column 0: it is empty"), "{:?}", rows[0]);
    assert_eq!(rows.len(), 2);
    let rows = read(&columns("0-1"), "a.csv", b"5.1,3.5,setosa\n4.9,3.0,setosa\n").expect("readable");
    assert_eq!(good(&rows[0]), [5.1, 3.5]);
}

#[test]
fn files_as_tools_write_them_are_read_or_refused_with_what_to_do() {
    // Excel in half of Europe: a byte order mark, semicolons and decimal commas.
    let excel = "\u{feff}a;b;note\r\n1,5;3,0;x\r\n2,5;-1e3;y\r\n".as_bytes();
    let error = refusal(&one(), "a.csv", excel);
    assert!(error.contains("separated by ';': say --delimiter ';'"), "{error}");
    let semicolons = |options: &mut Files| {
        options.delimiter = Some(b';');
        options.columns = vec!["a,b".into()];
    };
    let error = refusal(&with(semicolons), "a.csv", excel);
    assert!(error.contains("`1,5` has a decimal comma: say --decimal-comma"), "{error}");
    let german = with(|options| {
        semicolons(options);
        options.decimal_comma = true;
    });
    let rows = read(&german, "a.csv", excel).expect("readable");
    assert_eq!((good(&rows[0]), good(&rows[1])), (vec![1.5, 3.0], vec![2.5, -1000.0]));
    let rows = read(&german, "a.csv", b"sep=;\r\na;b\r\n1,5;2\r\n1.5;2\r\n").expect("readable");
    assert_eq!((rows[0].0, good(&rows[0])), (3, vec![1.5, 2.0]));
    assert!(bad(&rows[1]).contains("a number has no point"), "{:?}", rows[1]);

    // Row names: pandas and R's write.csv, and R's write.table.
    for index in [&b",a,b\n0,1.5,2\n1,3,4\n"[..], b"\"\",\"a\",\"b\"\n\"1\",1.5,2\n"] {
        let error = refusal(&one(), "a.csv", index);
        assert!(error.contains("choose the columns, such as --columns 1-2 without it"), "{error}");
        assert_eq!(good(&read(&columns("1-2"), "a.csv", index).expect("readable")[0]), [1.5, 2.0]);
    }
    let table = b"\"a\" \"b\"\n\"1\" 1.5 2\n\"2\" 3 4\n";
    let spaces = with(|options| options.delimiter = Some(b' '));
    let error = refusal(&spaces, "a.csv", table);
    assert!(error.contains("row.names = FALSE"), "{error}");
    let error = refusal(&one(), "a.csv", b"1.5e+00 2.0e+00\n3.0e+00 4.0e+00\n");
    assert!(error.contains("--delimiter space"), "{error}");

    assert_eq!(good(&read(&one(), "a.TSV", b"a\tb\n1\t2\n").expect("tabs by name")[0]), [1.0, 2.0]);
    let single = with(|options| options.quote = crate::cli::quote("'").expect("a quote"));
    assert_eq!(good(&read(&single, "a.csv", b"'a','b'\n'1.5','2'\n").expect("other quotes")[0]), [1.5, 2.0]);
    let words = Reading {
        options: with(|options| (options.escape, options.columns) = (Some(b'\\'), vec!["x".into()])).options,
        ..reading_of("x", Datatype::Bytes)
    };
    let rows = read(&words, "a.csv", b"x\n\"he said \\\"hi\\\"\"\n5\n").expect("as PySpark escapes");
    assert_eq!(rows[0].1.as_ref().expect("a row")[0].data[4..], b"he said \"hi\""[..]);
    assert_eq!(good(&read(&one(), "A.CSV.GZ", &gzip(b"5.5,2\n")).expect("upper case")[0]), [5.5, 2.0]);
    for (content, expected) in [
        (&b"\xe9,b\n1,2\n"[..], "its first line cannot be read: it is not UTF-8"),
        (b"1,5;3,0\n2,5;4,0\n", "say --delimiter ';'"),
        (b"PK\x03\x04 and so on", "Excel"),
        (b"PAR1 and so on", "Parquet"),
        (b"\xff\xfe1\x00,\x002\x00", "UTF-16"),
        (b"\x28\xb5\x2f\xfd and so on", "unpack it"),
        (b"\x93NUMPY and so on", "--format npy"),
    ] {
        let error = refusal(&one(), "a.csv", content);
        assert!(error.contains(expected), "{error}");
    }
    let mut damaged = gzip(b"5.5,2\n7.5,8\n");
    let at = damaged.len() - 6;
    damaged[at] ^= 1;
    refusal(&one(), "a.csv.gz", &damaged);
}

#[test]
fn numbers_are_kept_or_refused_by_row_or_their_rounding_is_told() {
    let (reading, said) = heard(one());
    let text = b"1.5,inf\n0.1,-Infinity\n1e39,1\n1e400,1\n16777217,33554435\nnan,1\n3e38,-3e38\n";
    let rows = read(&reading, "a.csv", text).expect("readable");
    assert_eq!(good(&rows[0])[1], f32::INFINITY);
    assert_eq!(good(&rows[1]), [0.1, f32::NEG_INFINITY]);
    assert!(bad(&rows[2]).contains("is out of range for FP32"), "{:?}", rows[2]);
    assert!(bad(&rows[3]).contains("beyond 1.8e308 is out of range for FP32"), "{:?}", rows[3]);
    assert_eq!(good(&rows[4]), [16_777_216.0, 33_554_436.0]);
    assert!(good(&rows[5])[0].is_nan());
    let said = said.lock().expect("no panic").clone();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("16777217 became 16777216; with --exact such rows are errors"), "{said:?}");
    let exact = with(|options| options.numbers.exact = true);
    let rows = read(&exact, "a.csv", b"0.1,16777216\n1.5,16777217\n1.23456789,2\n").expect("readable");
    assert!(rows[0].1.is_ok(), "the digits that are written survive");
    assert!(bad(&rows[1]).contains("`16777217` would become 16777216 as FP32"), "{:?}", rows[1]);
    assert!(rows[2].1.is_err());

    let ids = reading_of("x", Datatype::Int64);
    let rows = read(&ids, "a.csv", b"9223372036854775807\n9223372036854775808\n9007199254740993.0\n3.0\n3.5\n")
        .expect("readable");
    let kept: Vec<bool> = rows.iter().map(|row| row.1.is_ok()).collect();
    assert_eq!(kept, [true, false, false, true, false]);
}

fn reading_of(name: &str, datatype: Datatype) -> Reading {
    reading(&[(name, datatype, &[])])
}
