//! Whether the first line of a CSV file is column names or a row. It is one or the other for sure, or it is asked about:
//! a row lost and names answered are both wrong answers.

use csv::StringRecord;

use super::super::convert::{Mark, Number, number_in};

/// What a first line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FirstLine {
    Names,
    Row,
    Unclear,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Nothing, or what stands for a missing value.
    Missing,
    /// Digits alone: these may also be a name.
    Whole(i128),
    Number,
    Text,
}

fn kind(field: &str) -> Kind {
    let field = field.trim();
    let plain = !field.is_empty() && field.bytes().all(|byte| byte.is_ascii_digit());
    match number_in(field, Mark::Point).or_else(|| number_in(field, Mark::Comma)) {
        Some(Number::Int(value)) if plain => Kind::Whole(value),
        Some(_) => Kind::Number,
        None if field.is_empty() => Kind::Missing,
        None if ["na", "n/a", "#n/a", "null", "none", "-", "?"].contains(&&*field.to_ascii_lowercase()) => {
            Kind::Missing
        }
        None => Kind::Text,
    }
}

/// Judges a first line by the kinds of its fields, and of the fields below them.
pub(super) fn first_line(top: &StringRecord, later: &[&StringRecord]) -> FirstLine {
    let kinds: Vec<Kind> = top.iter().map(kind).collect();
    let below = |column: usize| {
        later.iter().filter_map(move |row| row.get(column)).map(kind).filter(|kind| *kind != Kind::Missing)
    };
    // Below it there are values, and all of them are numbers.
    let over_numbers = |column: usize| {
        let mut below = below(column).peekable();
        below.peek().is_some() && below.all(|kind| kind != Kind::Text)
    };
    let texts: Vec<usize> = (0..kinds.len()).filter(|column| kinds[*column] == Kind::Text).collect();
    let numbers = kinds.iter().any(|kind| matches!(kind, Kind::Whole(_) | Kind::Number));
    let only_whole = !kinds.contains(&Kind::Number);
    match (texts.is_empty(), numbers) {
        (true, _) => {
            // A name does not come again as a value; and where nothing below is whole, these may be years over measurements.
            let unlike = only_whole
                && distinct(&kinds)
                && later.len() > 1
                && (0..kinds.len()).all(|column| below(column).all(|kind| kind == Kind::Number));
            let repeated = later.contains(&top);
            if !repeated && (counts(&kinds) || unlike) { FirstLine::Unclear } else { FirstLine::Row }
        }
        (false, false) if later.is_empty() || texts.iter().any(|column| over_numbers(*column)) => FirstLine::Names,
        // Nobody names a column 5.1, and the texts stand over texts: labels.
        (false, true) if !only_whole && !texts.iter().any(|column| over_numbers(*column)) => FirstLine::Row,
        _ => FirstLine::Unclear,
    }
}

/// 0, 1, 2, as pandas names columns, or 1, 2, 3; an index without a name may stand before.
fn counts(kinds: &[Kind]) -> bool {
    let kinds = if kinds.first() == Some(&Kind::Missing) { &kinds[1..] } else { kinds };
    let from = |start: i128| kinds.iter().zip(start..).all(|(kind, expected)| *kind == Kind::Whole(expected));
    !kinds.is_empty() && from(0) || kinds.len() > 2 && from(1)
}

fn distinct(kinds: &[Kind]) -> bool {
    let mut seen = std::collections::BTreeSet::new();
    let mut whole = kinds.iter().filter_map(|kind| if let Kind::Whole(value) = kind { Some(*value) } else { None });
    whole.all(|value| seen.insert(value)) && !seen.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_line_is_names_or_a_row_or_it_is_asked_about() {
        let cases: [(&[&str], FirstLine); 26] = [
            // As pandas, R, Spark and scikit-learn write names.
            (&["a,b,label", "1,2,x"], FirstLine::Names),
            (&["_c0,_c1", "1.5,2"], FirstLine::Names),
            (&[",a,b", "0,1,2"], FirstLine::Names),
            (&["V1,V2", "NA,0.5", "1.5,2"], FirstLine::Names),
            (&["a,b"], FirstLine::Names),
            (&["# x,y", "1,2"], FirstLine::Names),
            (&["'a','b'", "1,2"], FirstLine::Names),
            // Rows: with labels, missing values, and what looks like numbers.
            (&["1,2,3", "4,5,6"], FirstLine::Unclear),
            (&["5,3,1", "4,5,6"], FirstLine::Row),
            (&["5.1,3.5,setosa", "4.9,3.0,setosa"], FirstLine::Row),
            (&[",2,3,4", "5,6,7,8"], FirstLine::Row),
            (&["NA,2,3", "5,6,7"], FirstLine::Row),
            (&["nan,inf,-1e3", "5,6,7"], FirstLine::Row),
            (&["7"], FirstLine::Row),
            (&["0,0,5,13", "0,0,0,12"], FirstLine::Row),
            (&["3,4", "1,2.5", "3,4"], FirstLine::Row),
            // Nobody can tell.
            (&["0,1,2,3", "1,2,3,4"], FirstLine::Unclear),
            (&[",0,1,2", "0,5,6,7"], FirstLine::Unclear),
            (&["0", "1.5"], FirstLine::Unclear),
            (&["2019,2020", "0.5,1.5", "2.5,3.5"], FirstLine::Unclear),
            (&["name,2019,2020", "bob,1,2"], FirstLine::Unclear),
            (&["text,label", "hello,pos"], FirstLine::Unclear),
            (&["oops,2,3", "4,5,6"], FirstLine::Unclear),
            (&["oops,2.5,3", "4,5,6"], FirstLine::Unclear),
            (&["150,4,setosa", "5.1,3.5,0"], FirstLine::Unclear),
            (&["1,2,3,4", "5,6,7,8", "1,2,3,4"], FirstLine::Row),
        ];
        for (lines, expected) in cases {
            let records: Vec<StringRecord> = lines.iter().map(|line| line.split(',').collect()).collect();
            let later: Vec<_> = records[1..].iter().collect();
            assert_eq!(first_line(&records[0], &later), expected, "{lines:?}");
        }
    }
}
