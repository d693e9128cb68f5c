//! Columns as that client aligns them: cells end with a tab, a column is as wide as its widest cell in neighbouring lines.

/// How cells are filled up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// With tabs, to multiples of eight.
    Tabs,
    /// With spaces, one at least.
    Spaces,
}

const TAB: usize = 8;

/// Aligns the cells of a text, whose lines all end with a line feed.
pub fn align(text: &str, fill: Fill) -> String {
    let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split('\t').collect()).collect();
    let mut out = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            out.push_str(cell);
            // The last cell of a line belongs to no column.
            if column + 1 == line.len() {
                continue;
            }
            let width = width(&lines, at, column);
            let own = cell.chars().count();
            match fill {
                Fill::Spaces => out.extend(std::iter::repeat_n(' ', width + 1 - own)),
                Fill::Tabs => {
                    let full = (width + 1).next_multiple_of(TAB);
                    out.extend(std::iter::repeat_n('\t', (full - own).div_ceil(TAB)));
                }
            }
        }
        out.push('\n');
    }
    out
}

/// Returns the width of the widest cell of a column in the lines around one that all have that column.
fn width(lines: &[Vec<&str>], at: usize, column: usize) -> usize {
    let has = |line: &&Vec<&str>| line.len() > column + 1;
    let before = lines[..at].iter().rev().take_while(has);
    let after = lines[at..].iter().take_while(has);
    before.chain(after).map(|line| line[column].chars().count()).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_end_at_multiples_of_eight() {
        assert_eq!(align("ID\tSIZE\nabcdefgh\t1\n", Fill::Tabs), "ID\t\tSIZE\nabcdefgh\t1\n");
        assert_eq!(align("Total:\t5B\nReclaimable:\t0B\n", Fill::Tabs), "Total:\t\t5B\nReclaimable:\t0B\n");
        assert_eq!(align("a\t\nb\t\n", Fill::Tabs), "a\t\nb\t\n");
    }

    #[test]
    fn a_line_without_cells_begins_anew() {
        let text = "Labels:\n\tlong name here:\tx\n\nID:\ty\n";
        assert_eq!(align(text, Fill::Tabs), text);
        assert_eq!(align("BuildKit:\tk v\nDockerfile:\t1\n", Fill::Spaces), "BuildKit:   k v\nDockerfile: 1\n");
    }
}
