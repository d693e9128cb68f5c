//! Harnesses over whole builds with the real program: damage between builds, kills in the midst of them, and copies of
//! the disk under them. After each the next build has to give what a cold one gives. And many builds at once (`soak`),
//! after which the engine has to hold no more than before them, builds on a small disk (`budget`), and repairs while builds
//! run (`verified`).
//!
//! `KILN_HARNESS_ROUNDS=n` sets how much is done: 5,000 is the full number of damage rounds; kills and disk copies
//! grow with it up to 500. `KILN_HARNESS_SEED=n` chooses other rounds. What fails names the variable that repeats it.

mod budget;
mod choices;
mod client;
mod crash;
mod damage;
mod disk;
mod engine;
mod kill;
mod killed;
mod processes;
mod project;
mod remote;
mod rounds;
mod soak;
mod trouble;
mod verified;
