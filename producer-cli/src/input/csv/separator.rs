//! Whether a file that is read by commas is separated by something else.

use csv::StringRecord;

/// The separator that divides all lines alike, where commas do not do it better; as `--delimiter` takes it.
pub(super) fn other_than_comma(sample: &[&StringRecord]) -> Option<&'static str> {
    let width = sample.first()?.len();
    let numbers = |text: &str, separator| {
        text.contains(separator) && text.split(separator).all(|part| part.trim().parse::<f64>().is_ok())
    };
    let divided = |record: &&StringRecord| {
        record.len() == width && !record.iter().any(|field| [';', '|'].iter().any(|mark| numbers(field, *mark)))
    };
    if width > 1 && sample.iter().all(divided) {
        return None;
    }
    let lines: Vec<String> = sample.iter().map(|record| record.iter().collect::<Vec<_>>().join(",")).collect();
    let fields = |separator: char| {
        let mut counts = lines.iter().map(|line| line.split(separator).count());
        let first = counts.next().filter(|count| *count > 1)?;
        counts.all(|count| count == first).then_some(first)
    };
    for (separator, named) in [(';', "';'"), ('\t', "tab"), ('|', "'|'")] {
        if fields(separator).is_some() {
            return Some(named);
        }
    }
    // Words have spaces between them too: only numbers count.
    (fields(' ').is_some() && lines.last().is_some_and(|line| numbers(line, ' '))).then_some("space")
}
