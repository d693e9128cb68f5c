//! Golden outputs of the plain view.

use super::super::display::Display;
use super::super::mode::{Mode, ProgressEnv};
use super::super::script::moments;
use super::super::tty::Size;

use std::cell::RefCell;
use std::io::{self, Write};
use std::rc::Rc;

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Plays a script and returns what was printed, one line per line, with `|` before each.
fn play(script: &str) -> String {
    let out = Shared::default();
    let env = ProgressEnv::read(|_| None, false);
    let size = Size { width: 80, height: 24 };
    let mut display = Display::new(out.clone(), Mode::Plain, &env, "");
    let mut last = super::Stamp(0);
    for moment in moments(script) {
        last = moment.now;
        if let Some(news) = &moment.news {
            display.update(news, moment.now, size).expect("update");
        }
        display.refresh(moment.now, size).expect("refresh");
    }
    display.finish(last, size).expect("finish");
    let text = String::from_utf8(out.0.borrow().clone()).expect("text");
    text.lines().map(|l| format!("|{l}\n")).collect()
}

fn check(script: &str, want: &str) {
    let want: String = want.lines().map(str::trim_start).filter(|l| !l.is_empty()).map(|l| format!("{l}\n")).collect();
    let got = play(script);
    assert_eq!(got, want, "\n--- got ---\n{got}");
}

#[test]
fn one_step_after_the_other() {
    check(
        "0 start a
         0.5 out a hello\\nwor
         0.7 out a ld\\n
         1.2 done a
         1.2 cached b
         1.3 start c
         1.4 done c",
        "|#1 [a] RUN a
         |#1 0.500 hello
         |#1 0.500 world
         |#1 DONE 1.2s
         |
         |#2 [b] RUN b
         |#2 CACHED
         |
         |#3 [c] RUN c
         |#3 DONE 0.1s",
    );
}

#[test]
fn the_current_step_is_kept_for_a_while() {
    check(
        "0 start a
         0.1 start b
         1 out b from b\\n
         2 out a from a\\n
         6 out b more of b\\n
         7 done b
         8 done a",
        "|#1 [a] RUN a
         |#1 2.000 from a
         |#1 ...
         |
         |#2 [b] RUN b
         |#2 0.900 from b
         |#2 5.900 more of b
         |#2 DONE 6.9s
         |
         |#1 [a] RUN a
         |#1 DONE 8.0s",
    );
}

#[test]
fn a_step_that_waited_long_is_shown() {
    check(
        "0 start a
         0.1 start b
         1 out a 1\\n
         2 out a 2\\n
         3 out a 3\\n
         4 out a 4\\n
         4.5 out b quiet\\n
         5 out a 5\\n
         12 out a 12\\n
         13 done a
         13 done b",
        "|#1 [a] RUN a
         |#1 1.000 1
         |#1 2.000 2
         |#1 3.000 3
         |#1 4.000 4
         |#1 5.000 5
         |#1 12.00 12
         |#1 ...
         |
         |#2 [b] RUN b
         |#2 4.400 quiet
         |#2 ...
         |
         |#1 [a] RUN a
         |#1 DONE 13.0s
         |
         |#2 [b] RUN b
         |#2 DONE 12.9s",
    );
}

#[test]
fn statuses_are_reported_now_and_then() {
    check(
        "0 start a
         0 status a sha256:abc 0/1000000
         0.2 status a sha256:abc 10000/1000000
         0.4 status a sha256:abc 500000/1000000
         0.6 finish a sha256:abc 1000000
         0.7 finish a extracting 0
         0.8 done a",
        "|#1 [a] RUN a
         |#1 sha256:abc 0B / 1.00MB
         |#1 sha256:abc 500.00kB / 1.00MB 0.4s
         |#1 sha256:abc 1.00MB / 1.00MB 0.6s done
         |#1 extracting done
         |#1 DONE 0.8s",
    );
}

#[test]
fn a_failure_repeats_the_last_lines() {
    check(
        "0 start a
         0.1 warn a old syntax
         0.2 out a one\\ntwo\\npartial
         0.5 error a process \"make\" did not complete successfully: exit code: 2",
        "|#1 [a] RUN a
         |#1 WARN: old syntax
         |#1 0.200 one
         |#1 0.200 two
         |#1 0.200 partial
         |#1 ERROR: process \"make\" did not complete successfully: exit code: 2
         |------
         | > [a] RUN a:
         |0.200 one
         |0.200 two
         |0.200 partial
         |------",
    );
}

#[test]
fn a_cancelled_step_is_not_a_failure() {
    check(
        "0 start a
         1 error a failed to run: context canceled",
        "|#1 [a] RUN a
         |#1 CANCELED",
    );
}

#[test]
fn a_line_in_pieces_survives_a_switch() {
    check(
        "0 start a
         0.1 out a begin
         0.2 out a -middle
         0.3 cached b
         0.4 out a -end\\n
         0.5 done a",
        "|#1 [a] RUN a
         |#1 0.100 begin-middle
         |#1 ...
         |
         |#2 [b] RUN b
         |#2 CACHED
         |
         |#1 [a] RUN a
         |#1 0.100 begin-middle-end
         |#1 DONE 0.5s",
    );
}
