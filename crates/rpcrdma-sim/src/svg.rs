//! A timeline as a picture: the ladder of [`crate::timeline`] with shapes.
//!
//! # Operation
//! Time goes down, a row for each event; rows are not to scale, their times are at the left. A message is an arrow from
//! the row in which it was posted to the row in which it took a Receive, so that lines that cross are messages that passed
//! each other. A message that arrived nowhere ends in a cross between the two ends; half an arrow is a message whose other
//! half is above or below the picture. Circles are the client's window: full
//! ones are outstanding Calls, empty ones permits, dots are room in the grant that no posted Receive backs.

use std::{collections::BTreeMap, fmt::Write as _, ops::Range};

use rpcrdma::fabric::{
    Op,
    sim::{ConnId, Side},
};

use crate::timeline::{Mark, Numbers, Row, Tone};

const ROW: usize = 19;
const TOP: usize = 92;
const WIDTH: usize = 1240;
/// Where things are, from left to right.
const TIME: usize = 58;
const STEP: usize = 112;
const CONN: usize = 132;
const WINDOW: usize = 160;
const RECV: usize = 316;
const CLIENT: usize = 620;
const SERVER: usize = 820;
const SERVER_RECV: usize = 1180;
const HELD: usize = 1220;
/// Circles in the window's column.
const CIRCLES: usize = 13;

const STYLE: &str = "\
text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1f2328}\
.title{font:bold 16px system-ui,sans-serif}\
.sub{font:13px system-ui,sans-serif}\
.head,.faint{fill:#7d8590}\
.strong{font-weight:bold}\
.call{fill:#0969da}.reply{fill:#1a7f37}.bad{fill:#cf222e;font-weight:bold}\
.end{text-anchor:end}.mid{text-anchor:middle}\
.life{stroke:#d0d7de;stroke-width:2}\
line.call{stroke:#0969da;stroke-width:1.4}line.reply{stroke:#1a7f37;stroke-width:1.4}\
line.data{stroke:#8250df;stroke-dasharray:2 3}\
line.cut{stroke:#cf222e;stroke-dasharray:6 4}path.cross{stroke:#cf222e;stroke-width:2;fill:none}\
.band{fill:#f6f8fa}.busy{fill:#0969da}.free{fill:none;stroke:#1a7f37;stroke-width:1.3}.bare{fill:#afb8c1}\
.broken{fill:#ffebe9;stroke:#cf222e}";

/// Draws a part of the rows under a title and a line of explanation.
#[must_use]
pub fn draw(title: &str, subtitle: &str, all: &[Row], shown: Range<usize>) -> String {
    let rows = all.get(shown.clone()).unwrap_or_default();
    let height = TOP + (rows.len() + 2) * ROW;
    let mut out = String::new();
    let o = &mut out;
    // Writing to a String cannot fail.
    let _ = writeln!(
        o,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{0}</title>\n<style>{STYLE}</style>\n\
         <defs>{1}{2}{3}</defs>\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
        escape(title),
        arrow("call", "#0969da"),
        arrow("reply", "#1a7f37"),
        arrow("data", "#8250df"),
    );
    text(o, 20, 28, "title", title);
    text(o, 20, 48, "sub", subtitle);
    let head = TOP - 16;
    for (x, class, words) in [
        (TIME, "head end", "ms"),
        (STEP, "head end", "step"),
        (CONN, "head mid", "conn"),
        (WINDOW, "head", "window"),
        (RECV, "head mid", "recv"),
        (CLIENT, "strong mid", "client"),
        (SERVER, "strong mid", "server"),
        (SERVER_RECV, "head mid", "recv"),
        (HELD, "head mid", "held"),
    ] {
        text(o, x, head, class, words);
    }
    bands(o, rows);
    for x in [CLIENT, SERVER] {
        let _ = writeln!(
            o,
            "<line class=\"life\" x1=\"{x}\" y1=\"{}\" x2=\"{x}\" y2=\"{}\"/>",
            TOP - 8,
            height - ROW
        );
    }
    messages(o, all, &shown);
    for (nth, r) in rows.iter().enumerate() {
        row(o, y(nth), r);
    }
    out.push_str("</svg>\n");
    out
}

/// The middle of a row.
fn y(nth: usize) -> usize {
    TOP + nth * ROW + ROW / 2
}

fn arrow(name: &str, colour: &str) -> String {
    format!(
        "<marker id=\"{name}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" markerWidth=\"7\" markerHeight=\"7\" \
         orient=\"auto\"><path d=\"M0 0.5L8 4L0 7.5z\" fill=\"{colour}\"/></marker>"
    )
}

fn text(o: &mut String, x: usize, y: usize, class: &str, words: &str) {
    if !words.is_empty() {
        let _ = writeln!(o, "<text class=\"{class}\" x=\"{x}\" y=\"{y}\">{}</text>", escape(words));
    }
}

/// A background behind every second connection.
fn bands(o: &mut String, rows: &[Row]) {
    for (nth, _) in rows.iter().enumerate().filter(|(_, r)| r.conn.is_multiple_of(2)) {
        let _ = writeln!(
            o,
            "<rect class=\"band\" x=\"0\" y=\"{}\" width=\"{WIDTH}\" height=\"{ROW}\"/>",
            TOP + nth * ROW
        );
    }
}

/// Arrows from post to arrival.
fn messages(o: &mut String, all: &[Row], shown: &Range<usize>) {
    let mut arrivals: BTreeMap<(ConnId, Side, u64), usize> = BTreeMap::new();
    for (at, row) in all.iter().enumerate() {
        if let Mark::Arrived(nth) = row.mark {
            arrivals.insert((row.conn, row.side.other(), nth), at);
        }
    }
    let middle = usize::midpoint(CLIENT, SERVER);
    let place = |at: usize| shown.contains(&at).then(|| y(at - shown.start));
    for (at, row) in all.iter().enumerate() {
        let (from, to) = if row.side == Side::Active { (CLIENT, SERVER) } else { (SERVER, CLIENT) };
        let class = if row.side == Side::Active { "call" } else { "reply" };
        let here = place(at);
        match row.mark {
            Mark::Sent(nth) => {
                let arrived = arrivals.get(&(row.conn, row.side, nth)).copied();
                match (here, arrived, arrived.and_then(place)) {
                    (Some(here), _, Some(there)) => line(o, class, Some(class), (from, here), (to, there)),
                    (Some(here), Some(_), None) => line(o, class, None, (from, here), (middle, here)),
                    (Some(here), None, None) => {
                        let end = (middle, here + ROW / 2);
                        line(o, class, None, (from, here), end);
                        cross(o, end);
                    }
                    (None, _, Some(there)) => line(o, class, Some(class), (middle, there), (to, there)),
                    (None, _, None) => {}
                }
            }
            Mark::Data(op) => {
                // What an RDMA Read asks for comes the other way.
                let (from, to) = if op == Op::Read { (to, from) } else { (from, to) };
                if let Some(here) = here {
                    line(o, "data", Some("data"), (from, here), (to, here));
                }
            }
            _ => {}
        }
    }
}

fn line(o: &mut String, class: &str, head: Option<&str>, from: (usize, usize), to: (usize, usize)) {
    let marker = head.map_or_else(String::new, |m| format!(" marker-end=\"url(#{m})\""));
    let _ = writeln!(
        o,
        "<line class=\"{class}\" x1=\"{}\" y1=\"{}\" x2=\"{}\" y2=\"{}\"{marker}/>",
        from.0, from.1, to.0, to.1
    );
}

fn cross(o: &mut String, (x, y): (usize, usize)) {
    let _ = writeln!(
        o,
        "<path class=\"cross\" d=\"M{} {}L{} {}M{} {}L{} {}\"/>",
        x - 5,
        y - 5,
        x + 5,
        y + 5,
        x - 5,
        y + 5,
        x + 5,
        y - 5
    );
}

fn row(o: &mut String, y: usize, row: &Row) {
    let base = y + 4;
    text(o, TIME, base, "faint end", &row.at.as_millis().to_string());
    text(o, STEP, base, "faint end", &row.step.to_string());
    text(o, CONN, base, "mid", &row.conn.to_string());
    let class = match row.tone() {
        Tone::Plain => "plain",
        Tone::Faint => "faint",
        Tone::Strong => "strong",
        Tone::Call => "call",
        Tone::Reply => "reply",
        Tone::Bad => "bad",
    };
    if matches!(row.mark, Mark::Fault | Mark::Broken) {
        let _ =
            writeln!(o, "<line class=\"cut\" x1=\"{WINDOW}\" y1=\"{y}\" x2=\"{SERVER_RECV}\" y2=\"{y}\"/>");
        let width = (row.words.chars().count() * 8 + 24).min(SERVER_RECV - WINDOW);
        let middle = usize::midpoint(CLIENT, SERVER);
        let _ = writeln!(
            o,
            "<rect class=\"broken\" rx=\"4\" x=\"{}\" y=\"{}\" width=\"{width}\" height=\"{}\"/>",
            middle - width / 2,
            y - ROW / 2,
            ROW - 1
        );
        return text(o, middle, base, "bad mid", &row.words);
    }
    window(o, y, &row.numbers);
    text(o, RECV, base, "mid", &row.numbers.posted[0].to_string());
    text(o, SERVER_RECV, base, "mid", &row.numbers.posted[1].to_string());
    text(o, HELD, base, "mid", &row.numbers.held.to_string());
    let here = if row.side == Side::Active { CLIENT } else { SERVER };
    match row.side {
        Side::Active => text(o, CLIENT - 12, base, &format!("{class} end"), &row.words),
        Side::Passive => text(o, SERVER + 12, base, class, &row.words),
    }
    match row.mark {
        Mark::Lost => cross(o, (here, y)),
        Mark::Setup => {
            let _ = writeln!(o, "<circle cx=\"{here}\" cy=\"{y}\" r=\"4\"/>");
        }
        _ => {}
    }
}

fn window(o: &mut String, y: usize, n: &Numbers) {
    let room = n.window.saturating_sub(n.outstanding);
    let permits = n.permits.min(room);
    if n.outstanding.max(n.window) > CIRCLES {
        let bare = room - permits;
        return text(
            o,
            WINDOW,
            y + 4,
            "plain",
            &format!("{} out, {permits} free, {bare} bare", n.outstanding),
        );
    }
    let kinds = [("busy", n.outstanding), ("free", permits), ("bare", room - permits)];
    let all = kinds.into_iter().flat_map(|(class, count)| std::iter::repeat_n(class, count));
    for (nth, class) in all.enumerate() {
        let radius = if class == "bare" { 1.5 } else { 3.8 };
        let _ = writeln!(
            o,
            "<circle class=\"{class}\" cx=\"{}\" cy=\"{y}\" r=\"{radius}\"/>",
            WINDOW + 5 + nth * 11
        );
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn row(mark: Mark, side: Side, words: &str) -> Row {
        let (at, words) = (Duration::from_millis(3), words.to_owned());
        Row { step: 1, at, conn: 2, side, mark, words, numbers: Numbers::default(), count: 1 }
    }

    #[test]
    fn messages_are_arrows_and_lost_ones_end_in_a_cross() {
        let rows = [
            row(Mark::Sent(1), Side::Active, "Call <&\">"),
            row(Mark::Arrived(1), Side::Passive, "Call"),
            row(Mark::Sent(1), Side::Passive, "Reply"),
        ];
        let whole = draw("a & b", "c", &rows, 0..3);
        assert_eq!(whole.matches("class=\"cross\"").count(), 1, "the Reply arrives nowhere");
        assert_eq!(whole.matches("marker-end=\"url(#call)\"").count(), 1);
        assert!(whole.contains("Call &lt;&amp;&quot;&gt;") && whole.contains("<title>a &amp; b</title>"));
        let part = draw("", "", &rows, 0..1);
        assert_eq!(part.matches("class=\"cross\"").count(), 0, "the Call arrives below the picture");
        let opened = whole.matches('<').count() - whole.matches("</").count();
        let closed = whole.matches("</").count() + whole.matches("/>").count();
        assert_eq!(opened, closed, "every element is closed");
    }
}
