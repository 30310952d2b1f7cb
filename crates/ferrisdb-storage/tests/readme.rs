//! The README's block about the engine alone does what it says. It names a database in the working directory, so that it cannot be run among the doc tests: here it has a process,
//! and a directory, of its own.

/// The block. The test below compares it with the README, word by word.
#[expect(clippy::print_stdout, reason = "it is what a program of the reader's does")]
mod block {
    include!("readme/engine.rs");

    pub(super) fn run() -> ferrisdb_storage::Result<()> {
        main()
    }
}

#[test]
fn the_block_of_the_readme_runs() {
    let readme = include_str!("../../../README.md");
    let shown = readme.split("```rust,no_run\n").nth(1).and_then(|rest| rest.split("```").next());
    assert_eq!(shown, Some(include_str!("readme/engine.rs")), "tests/readme/engine.rs is the README's block");
    let directory = tempfile::tempdir().expect("a temporary directory");
    std::env::set_current_dir(directory.path()).expect("it is there");
    block::run().expect("it runs");
    block::run().expect("on a database that is there, too");
    assert!(directory.path().join("fruit.db").is_dir());
}
