//! Drawings, on an emulated terminal.

use super::super::testing::Emulator;
use super::*;

const WIDE: Size = Size {
    columns: 40,
    rows: 24,
};

fn lines(texts: &[&str]) -> Vec<Line> {
    texts.iter().map(Line::plain).collect()
}

#[test]
fn live_lines_are_replaced_and_others_stay_above() {
    let mut screen = Screen::default();
    let mut terminal = Emulator::new(WIDE);
    terminal.write("before\r\n");
    let steps: [(&[&str], &[&str]); 5] = [
        (&[], &["building a, for long", "1s"]),
        (&[], &["building b", "building c", "2s"]),
        (&["built b"], &["building c", "3s"]),
        (
            &[
                "built c",
                "a long line that stays: it is wrapped by the terminal itself",
            ],
            &["4s"],
        ),
        (&[], &[]),
    ];
    let mut stayed = vec!["before".to_owned()];
    for (stay, frame) in steps {
        terminal.write(&screen.redraw(&lines(stay), &lines(frame), WIDE, true));
        for line in stay {
            let letters: Vec<char> = line.chars().collect();
            stayed.extend(
                letters
                    .chunks(WIDE.columns)
                    .map(|row| row.iter().collect::<String>()),
            );
        }
        let expected: Vec<String> = stayed
            .iter()
            .cloned()
            .chain(frame.iter().map(|line| (*line).to_owned()))
            .collect();
        assert_eq!(terminal.shown(), expected);
    }
}

#[test]
fn nothing_is_written_where_nothing_changes_hands() {
    assert_eq!(Screen::default().redraw(&[], &[], WIDE, true), "");
}

#[test]
fn a_terminal_that_became_narrower_keeps_no_leftovers() {
    let narrow = Size {
        columns: 10,
        rows: 24,
    };
    let mut screen = Screen::default();
    let mut terminal = Emulator::new(WIDE);
    terminal.write(&screen.redraw(
        &lines(&["stays"]),
        &lines(&["twenty-five columns wide.", "2s"]),
        WIDE,
        true,
    ));
    terminal.resize(narrow);
    terminal.write(&screen.redraw(&[], &lines(&["narrow", "3s"]), narrow, true));
    assert_eq!(terminal.shown(), ["stays", "narrow", "3s"]);
    terminal.resize(WIDE);
    terminal.write(&screen.redraw(&[], &lines(&["wide again", "4s"]), WIDE, true));
    assert_eq!(terminal.shown(), ["stays", "wide again", "4s"]);
}

#[test]
fn after_a_stop_the_lines_of_others_are_not_overwritten() {
    let mut screen = Screen::default();
    let mut terminal = Emulator::new(WIDE);
    terminal.write(&screen.redraw(&[], &lines(&["building a"]), WIDE, true));
    terminal.write("$ fg\r\n");
    screen.forget();
    terminal.write(&screen.redraw(&[], &lines(&["building b"]), WIDE, true));
    assert_eq!(terminal.shown(), ["building a", "$ fg", "building b"]);
}

#[test]
fn no_mode_of_the_terminal_outlives_a_write() {
    let drawn = Screen::default().redraw(
        &[],
        &[Line::default().add(super::super::line::Tint::Bad, "x")],
        WIDE,
        true,
    );
    assert!(drawn.starts_with("\x1b[?2026h") && drawn.ends_with("\x1b[?2026l"));
    assert!(!drawn.contains("\x1b[?25"), "the cursor is not hidden");
    assert!(drawn.contains("x\x1b[0m"));
}
