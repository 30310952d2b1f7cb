//! Writes well-formed inputs of every decoder into `corpus/TARGET/`, from which a fuzzer gets further than from nothing.

#![expect(clippy::disallowed_methods, reason = "a chore of one machine; the door is for the engine")]

fn main() -> std::io::Result<()> {
    let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (name, examples) in ferrisdb_storage::testing::decoders::seeds() {
        let directory = corpus.join(name);
        std::fs::create_dir_all(&directory)?;
        for (number, example) in examples.iter().enumerate() {
            std::fs::write(directory.join(format!("example-{number}")), example)?;
        }
    }
    Ok(())
}
