//! Tables: within the width of a terminal; in a pipe or a file as plain columns, for `awk` and `grep`.

use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, presets};

/// A table under a header.
pub struct Table(comfy_table::Table);

impl Table {
    /// An empty one.
    pub fn new<const N: usize>(header: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.set_header(header);
        Self(table)
    }

    /// Sets numbers under each other.
    pub fn right(mut self, columns: impl IntoIterator<Item = usize>) -> Self {
        for column in columns {
            if let Some(column) = self.0.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        self
    }

    /// Adds a row.
    pub fn add_row<const N: usize>(&mut self, row: [String; N]) {
        self.0.add_row(row);
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// As it looks on a terminal of this width, or without one.
    fn render(&self, width: Option<u16>) -> String {
        let mut table = self.0.clone();
        match width {
            Some(width) => {
                table.load_style(presets::UTF8_BORDERS_ONLY);
                table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
                table.to_string()
            }
            None => {
                table.load_style(presets::NOTHING);
                table.set_content_arrangement(ContentArrangement::Disabled);
                table.column_iter_mut().for_each(|column| _ = column.set_padding((0, 2)));
                table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
            }
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.render(self.0.width()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fits_a_terminal_and_is_plain_columns_without_one() {
        let mut table = Table::new(["MODEL", "SLOTS", "WHY"]).right([1]);
        let why = "its requests wait longer than they should, and there is room for one more on this host";
        table.add_row(["digits".into(), "12".into(), why.into()]);
        table.add_row(["a".into(), "3".into(), String::new()]);
        let plain = format!("MODEL   SLOTS  WHY\ndigits     12  {why}\na           3");
        assert_eq!(table.render(None), plain);
        for width in [40, 80] {
            let boxed = table.render(Some(width));
            assert!(boxed.lines().all(|line| line.chars().count() <= usize::from(width)), "{boxed}");
            assert!(boxed.contains("digits") && boxed.contains('\u{2502}'), "{boxed}");
        }
    }
}
