//! Aligned columns that fit the terminal.

use std::io::IsTerminal;

/// Columns of the terminal; 80 where there is none.
pub fn width() -> usize {
    if !std::io::stdout().is_terminal() {
        return 80;
    }
    terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0))
}

/// Rows under a head. The first column is never cut; the last one gives way first, then columns are
/// left out from the right.
pub fn lines(head: &[&str], rows: &[Vec<String>], width: usize) -> Vec<String> {
    let cells = |row: &[String], at: usize| row.get(at).map_or(0, |cell| cell.chars().count());
    let widest = |at: usize| rows.iter().map(|row| cells(row, at)).max().unwrap_or(0).max(head[at].len());
    let widths: Vec<usize> = (0..head.len()).map(widest).collect();
    let mut shown = head.len();
    // Of the last column at least its head, and a few letters, are to be seen.
    let least = |shown: usize| {
        let before: usize = widths[..shown - 1].iter().map(|width| width + 2).sum();
        before + widths[shown - 1].min(head[shown - 1].len().max(8))
    };
    while shown > 1 && least(shown) > width {
        shown -= 1;
    }
    let line = |row: &[String]| {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate().take(shown) {
            let room = if at == 0 { usize::MAX } else { width.saturating_sub(line.chars().count()) };
            let cell = if at + 1 == shown { cut(cell, room) } else { cell.clone() };
            let padding = if at + 1 == shown { 0 } else { widths[at] + 2 - cell.chars().count() };
            line.push_str(&cell);
            line.extend(std::iter::repeat_n(' ', padding));
        }
        line.trim_end().to_string()
    };
    let head: Vec<String> = head.iter().map(|name| name.to_string()).collect();
    std::iter::once(line(&head)).chain(rows.iter().map(|row| line(row))).collect()
}

fn cut(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.into();
    }
    text.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Vec<String>> {
        let row = |cells: [&str; 3]| cells.map(String::from).to_vec();
        vec![row(["a-very-long-name/Service", "enabled", "crashed at some place of some file"])]
    }

    #[test]
    fn the_last_column_gives_way_and_names_never() {
        let lines = lines(&["NAME", "STATE", "LAST FAILURE"], &rows(), 50);
        assert!(lines.iter().all(|line| line.chars().count() <= 50), "{lines:?}");
        assert!(lines[1].starts_with("a-very-long-name/Service  enabled  crashed"));
        assert!(lines[1].ends_with('…'));
    }

    #[test]
    fn without_room_only_names_stay() {
        let lines = lines(&["NAME", "STATE", "LAST FAILURE"], &rows(), 10);
        assert_eq!(lines, ["NAME", "a-very-long-name/Service"]);
    }
}
