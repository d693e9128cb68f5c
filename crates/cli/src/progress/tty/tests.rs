//! The terminal view, looked at through a terminal emulator.

use super::super::script::moments;
use super::super::tail::Keep;
use super::*;

/// Plays a script on an emulated terminal and returns its rows.
fn play(script: &str, width: u16, height: u16, last: bool) -> Vec<String> {
    let size = Size { width, height };
    let mut screen = vt100::Parser::new(at_least_one(height), at_least_one(width), 0);
    let options =
        TtyOptions { phase: "Building".into(), description: String::new(), style: Style::none(), log_lines: 6 };
    let mut state = ProgressState::new(Keep::Full);
    let mut view = Tty::new(Vec::new(), options);
    let mut end = Stamp(0);
    for moment in moments(script) {
        end = moment.now;
        if let Some(news) = &moment.news {
            let changes = state.apply(news, moment.now);
            view.note(&changes, size);
        }
        view.draw(&state, moment.now, size, false).expect("draw");
    }
    if last {
        view.draw(&state, end, size, true).expect("draw");
    }
    screen.process(&view.out);
    let mut rows: Vec<String> = screen.screen().rows(0, width).map(|r| r.trim_end().to_owned()).collect();
    while rows.last().is_some_and(String::is_empty) {
        rows.pop();
    }
    rows
}

#[test]
fn steps_timers_and_log_lines() {
    let rows = play(
        "0 start a
         0.5 done a
         0.5 start b
         1 out b first\\nsecond\\n
         2.5 draw",
        50,
        24,
        false,
    );
    assert_eq!(
        rows,
        [
            "[+] Building 2.5s (1/2)",
            " => [a] RUN a                                0.5s",
            " => [b] RUN b                                2.0s",
            " => => # first",
            " => => # second",
        ]
    );
}

#[test]
fn the_end_shows_all() {
    let rows = play(
        "0 start a
         1 finish a sha256:12 2000000
         1.2 done a
         1.2 cached b
         1.3 start c
         1.4 error c boom",
        60,
        8,
        true,
    );
    assert_eq!(
        rows,
        [
            "[+] Building 1.4s (3/3) FINISHED",
            " => [a] RUN a                                          1.2s",
            " => => sha256:12 2.00MB / 2.00MB                       0.0s",
            " => CACHED [b] RUN b                                   0.0s",
            " => ERROR [c] RUN c                                    0.1s",
        ]
    );
}

#[test]
fn progress_bars_overwrite_themselves() {
    let rows = play(
        "0 start a
         1 out a 10%\\r50%\\r100%
         2 draw",
        50,
        24,
        false,
    );
    assert_eq!(rows[2..], [" => => # 100%"]);
}

#[test]
fn only_the_last_lines_of_output_show() {
    let rows = play(
        "0 start a
         1 out a 1\\n2\\n3\\n4\\n5\\n6\\n7\\n8\\n9
         2 draw",
        40,
        24,
        false,
    );
    let shown: Vec<&str> = rows[2..].iter().filter_map(|r| r.strip_prefix(" => => # ")).collect();
    assert_eq!(shown, ["4", "5", "6", "7", "8", "9"]);
}

#[test]
fn a_low_terminal_keeps_running_steps() {
    let script: String = "0 start slow\n".to_owned()
        + &(1..12).map(|i| format!("{i} start s{i}\n{i} done s{i}\n")).collect::<String>()
        + "20 draw";
    let rows = play(&script, 40, 8, false);
    assert!(rows.len() <= 8, "{rows:?}");
    assert!(rows.iter().any(|r| r.contains("[slow]")), "{rows:?}");
    assert!(rows.iter().any(|r| r.contains("[s11]")), "{rows:?}");
}

#[test]
fn nothing_is_wider_than_the_terminal() {
    let script = "0 start a-very-long-name-of-a-step-that-does-not-fit-into-the-terminal-at-all
         1 status a-very-long-name-of-a-step-that-does-not-fit-into-the-terminal-at-all läyer-名前 1/2
         2 draw";
    for width in [20, 33, 80] {
        let size = Size { width, height: 24 };
        let mut state = ProgressState::new(Keep::Full);
        let options =
            TtyOptions { phase: "Building".into(), description: "x".into(), style: Style::none(), log_lines: 6 };
        let mut view = Tty::new(Vec::new(), options);
        for moment in moments(script) {
            if let Some(news) = &moment.news {
                state.apply(news, moment.now);
            }
            view.out.clear();
            view.draw(&state, moment.now, size, false).expect("draw");
        }
        let text = String::from_utf8(view.out).expect("text");
        for line in text.split("\x1b[K\r\n") {
            let plain =
                line.rsplit('\x1b').next().and_then(|l| l.split_once(['A', 'l', 'h', 'J', '\r'])).map_or(line, |x| x.1);
            assert!(plain.width() <= usize::from(width), "{width}: {plain:?}");
        }
    }
}

#[test]
fn cutting_respects_wide_characters() {
    assert_eq!(cut("名前abc", 5), "名前a");
    assert_eq!(cut("名前abc", 3), "名");
    assert_eq!(cut("a\u{7}b", 5), "ab");
    assert_eq!(align("left", "right", 12), "left   right");
    assert_eq!(align("far too long", "r", 6), "far  r");
}
