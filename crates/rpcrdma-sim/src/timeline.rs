//! What happened on the fabric, in order, for people: a ladder between client and server.
//!
//! # Operation
//! [`crate::record::Log`] makes an [`Entry`] of each event that it keeps. [`Timeline::rows`] turns entries into [`Row`]s:
//! what belongs together becomes one row, what only a debugger wants to see is left out, and each row has the numbers of
//! its connection as they were then. [`Timeline::lines`] draws rows with characters, [`crate::svg`] with shapes.
//!
//! # The window
//! The column `window` shows what the client's Calls may do: `●` is a Call that is outstanding, `○` a permit for another,
//! `·` room that the grant gives and no posted Receive backs. A connection begins with `○`.
//!
//! # Limits
//! A timeline holds as many entries as its record was told to keep, the latest ones.

use std::{fmt, fmt::Write as _, ops::Range, time::Duration};

use rpcrdma::fabric::{
    Op,
    sim::{ConnId, Side},
};

/// The account of a connection at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Receives posted at the client and at the server.
    pub posted: [usize; 2],
    /// The latest grant that the client was given.
    pub granted: Option<u32>,
    /// Calls that the client may have outstanding.
    pub window: usize,
    /// Calls outstanding.
    pub outstanding: usize,
    /// Calls that the client might send now.
    pub permits: usize,
    /// Calls that arrived at the server and are not answered.
    pub held: usize,
    /// Regions that the client has exposed.
    pub exposed: usize,
}

/// What kind of thing an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Something about the making of a connection.
    Setup,
    /// A Receive is posted.
    Receive,
    /// A message is posted: this is the nth of this end.
    Sent(u64),
    /// A message has taken a Receive: the nth of the other end.
    Arrived(u64),
    /// The client's window has changed.
    Window,
    /// An RDMA Read or Write is posted.
    Data(Op),
    /// Memory is exposed, or closed.
    Memory,
    /// Something that only a debugger wants to see.
    Detail,
    /// Something breaks.
    Fault,
    /// The connection is lost at this end.
    Lost,
    /// This end is closed or dropped.
    End,
    /// A rule is broken.
    Broken,
}

/// Something that happened at one end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The step of which it is a part.
    pub step: u64,
    /// When.
    pub at: Duration,
    /// On which connection.
    pub conn: ConnId,
    /// At which end.
    pub side: Side,
    /// What kind of thing.
    pub mark: Mark,
    /// In words.
    pub words: String,
    /// The connection's account afterwards.
    pub numbers: Numbers,
}

/// How much of a timeline is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// What a person needs to understand a connection's life.
    Story,
    /// Every event.
    All,
}

/// One line of the ladder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The step of its first entry.
    pub step: u64,
    /// When that was.
    pub at: Duration,
    /// The connection.
    pub conn: ConnId,
    /// Whose words these are.
    pub side: Side,
    /// What kind of thing.
    pub mark: Mark,
    /// In words.
    pub words: String,
    /// The connection's account after its last entry.
    pub numbers: Numbers,
    /// Entries in this row.
    pub count: usize,
}

/// How a piece of a line is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// Less important.
    Faint,
    /// A heading, or a connection's beginning.
    Strong,
    /// A Call.
    Call,
    /// A Reply, or a window that opens.
    Reply,
    /// Something breaks.
    Bad,
}

impl Tone {
    /// The SGR code for a terminal.
    #[must_use]
    pub fn sgr(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Faint => "2",
            Self::Strong => "1",
            Self::Call => "36",
            Self::Reply => "32",
            Self::Bad => "1;31",
        }
    }
}

/// A line of the ladder in pieces, from left to right.
pub type Line = Vec<(Tone, String)>;

/// Events in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Timeline {
    /// The events.
    pub entries: Vec<Entry>,
}

impl Mark {
    fn tone(self, side: Side) -> Tone {
        match (self, side) {
            (Self::Setup, _) => Tone::Strong,
            (Self::Sent(_) | Self::Arrived(_), _) => {
                // What the client sends arrives at the server.
                let call = matches!(self, Self::Sent(_)) == (side == Side::Active);
                if call { Tone::Call } else { Tone::Reply }
            }
            (Self::Window, _) => Tone::Reply,
            (Self::Fault | Self::Lost | Self::Broken, _) => Tone::Bad,
            (Self::Data(_) | Self::End, _) => Tone::Plain,
            (Self::Receive | Self::Memory | Self::Detail, _) => Tone::Faint,
        }
    }

    /// Whether neighbours of this kind make one row.
    fn gathers(self) -> bool {
        matches!(self, Self::Receive | Self::Detail | Self::Memory)
    }
}

impl Row {
    /// How its words are meant.
    #[must_use]
    pub fn tone(&self) -> Tone {
        self.mark.tone(self.side)
    }
}

impl Numbers {
    /// The window in `width` cells, see the module's head.
    #[must_use]
    pub fn gauge(&self, width: usize) -> String {
        let room = self.window.saturating_sub(self.outstanding);
        let permits = self.permits.min(room);
        if self.outstanding.max(self.window) > width {
            return format!("● {} ○ {permits}", self.outstanding);
        }
        let mut out = "●".repeat(self.outstanding);
        out.extend(std::iter::repeat_n('○', permits));
        out.extend(std::iter::repeat_n('·', room - permits));
        out
    }
}

/// Cells of the window's column.
const GAUGE: usize = 10;
/// Characters of the columns of words.
const WORDS: usize = 36;

impl Timeline {
    /// The rows of the ladder.
    #[must_use]
    pub fn rows(&self, detail: Detail) -> Vec<Row> {
        let mut rows: Vec<Row> = Vec::new();
        for e in &self.entries {
            if detail == Detail::Story && e.mark == Mark::Detail {
                continue;
            }
            if detail == Detail::Story
                && e.mark.gathers()
                && let Some(last) = rows.last_mut()
                && (last.conn, last.side, last.mark) == (e.conn, e.side, e.mark)
                && (e.mark == Mark::Receive || last.words == e.words)
            {
                last.count += 1;
                last.numbers = e.numbers;
                continue;
            }
            rows.push(Row {
                step: e.step,
                at: e.at,
                conn: e.conn,
                side: e.side,
                mark: e.mark,
                words: e.words.clone(),
                numbers: e.numbers,
                count: 1,
            });
        }
        for row in rows.iter_mut().filter(|r| r.count > 1) {
            let count = row.count;
            match row.mark {
                Mark::Receive => row.words = format!("posts {count} Receives"),
                _ => {
                    let _ = write!(row.words, ", {count} times");
                }
            }
        }
        rows
    }

    /// The part of `rows` to show if there is room for `most`: up to the broken rule that ends them, or from a little
    /// before the first fault, or from the beginning.
    #[must_use]
    pub fn window(rows: &[Row], most: usize) -> Range<usize> {
        if rows.len() <= most {
            return 0..rows.len();
        }
        if rows.last().is_some_and(|r| r.mark == Mark::Broken) {
            return rows.len() - most..rows.len();
        }
        let before = most / 4;
        let first = rows.iter().position(|r| r.mark == Mark::Fault).unwrap_or(0);
        let start = first.saturating_sub(before).min(rows.len() - most);
        start..start + most
    }

    /// The heading of [`Self::line`]s.
    #[must_use]
    pub fn heading() -> Line {
        vec![(
            Tone::Faint,
            format!(
                "{:>7} {:>6} {:>4}  {:>4} {:<GAUGE$}  {:>WORDS$}        {:<WORDS$} {:>4} {:>4}",
                "ms", "step", "conn", "recv", "window", "client", "server", "recv", "held"
            ),
        )]
    }

    /// A row with characters, about 130 wide.
    #[must_use]
    pub fn line(row: &Row) -> Line {
        let tone = row.tone();
        let ms = row.at.as_millis();
        let numbers = &row.numbers;
        let mut line: Line = vec![(Tone::Faint, format!("{ms:>7} {:>6} ", row.step))];
        line.push((Tone::Plain, format!("{:>4}  {:>4} ", row.conn, numbers.posted[0])));
        let gauge = numbers.gauge(GAUGE);
        line.push((Tone::Plain, pad(&gauge, GAUGE)));
        line.push((Tone::Plain, "  ".to_owned()));
        let across = matches!(row.mark, Mark::Fault | Mark::Broken);
        if across {
            let width = 2 * WORDS + 8;
            line.push((tone, pad(&format!("{0} {1} {0}", "╳╳╳", row.words), width)));
        } else {
            let client = row.side == Side::Active;
            let gutter = match (row.mark, client) {
                (Mark::Sent(_), true) => "├──▶ │",
                (Mark::Arrived(_), false) => "│ ──▶┤",
                (Mark::Sent(_), false) => "│ ◀──┤",
                (Mark::Arrived(_), true) => "├◀── │",
                (Mark::Setup, true) => "┝╸   │",
                (Mark::Setup, false) => "│   ╺┥",
                _ => "│    │",
            };
            let (left, right) = if client { (row.words.as_str(), "") } else { ("", row.words.as_str()) };
            let width = left.chars().count();
            line.push((Tone::Plain, " ".repeat(WORDS.saturating_sub(width))));
            line.push((tone, left.to_owned()));
            line.push((if across { tone } else { Tone::Plain }, format!(" {gutter} ")));
            line.push((tone, pad(right, WORDS)));
        }
        line.push((Tone::Plain, format!(" {:>4} {:>4}", numbers.posted[1], numbers.held)));
        line
    }

    /// The ladder without colours: the heading and all rows.
    #[must_use]
    pub fn lines(&self, detail: Detail) -> Vec<Line> {
        let rows = self.rows(detail);
        std::iter::once(Self::heading()).chain(rows.iter().map(Self::line)).collect()
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in self.lines(Detail::Story) {
            let text: String = line.iter().map(|(_, text)| text.as_str()).collect();
            writeln!(f, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

/// Fills up with blanks, counting characters.
fn pad(text: &str, width: usize) -> String {
    let have = text.chars().count();
    let mut out = text.to_owned();
    out.extend(std::iter::repeat_n(' ', width.saturating_sub(have)));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(step: u64, mark: Mark, words: &str) -> Entry {
        let at = Duration::from_millis(step);
        let numbers = Numbers { posted: [step as usize, 0], ..Numbers::default() };
        Entry { step, at, conn: 1, side: Side::Active, mark, words: words.to_owned(), numbers }
    }

    #[test]
    fn the_gauge_shows_calls_permits_and_room_without_receives() {
        let window =
            |window, outstanding, permits| Numbers { window, outstanding, permits, ..Numbers::default() };
        for (numbers, gauge) in [
            (window(1, 0, 1), "○"),
            (window(1, 1, 0), "●"),
            (window(8, 3, 2), "●●●○○···"),
            (window(2, 4, 0), "●●●●"),
            (window(16, 3, 4), "● 3 ○ 4"),
        ] {
            assert_eq!(numbers.gauge(10), gauge);
        }
    }

    #[test]
    fn neighbours_become_one_row_and_details_are_left_out() {
        let timeline = Timeline {
            entries: vec![
                entry(1, Mark::Receive, "posts a Receive"),
                entry(2, Mark::Detail, "is told that a Send is done"),
                entry(3, Mark::Receive, "posts a Receive"),
                entry(4, Mark::Sent(1), "Call"),
                entry(5, Mark::Receive, "posts a Receive"),
            ],
        };
        let rows = timeline.rows(Detail::Story);
        let words: Vec<&str> = rows.iter().map(|r| r.words.as_str()).collect();
        assert_eq!(words, ["posts 2 Receives", "Call", "posts a Receive"]);
        assert_eq!(rows[0].numbers.posted[0], 3, "the numbers are those of the last one");
        assert_eq!(timeline.rows(Detail::All).len(), 5);
    }

    #[test]
    fn the_part_that_is_shown_has_the_first_fault_or_the_broken_rule_in_it() {
        let rows = |at: usize, mark: Mark| {
            let mut entries: Vec<Entry> = (0..100).map(|n| entry(n, Mark::Sent(n), "Call")).collect();
            entries[at].mark = mark;
            Timeline { entries }.rows(Detail::Story)
        };
        assert_eq!(Timeline::window(&rows(50, Mark::Setup), 20), 0..20);
        assert_eq!(Timeline::window(&rows(50, Mark::Fault), 20), 45..65);
        assert_eq!(Timeline::window(&rows(98, Mark::Fault), 20), 80..100);
        assert_eq!(Timeline::window(&rows(99, Mark::Broken), 20), 80..100);
        assert_eq!(Timeline::window(&rows(2, Mark::Fault), 200), 0..100);
    }
}
