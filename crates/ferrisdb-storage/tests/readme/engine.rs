use ferrisdb_storage::{Durability, Engine, IterOptions, Options, WriteBatch};

fn main() -> ferrisdb_storage::Result<()> {
    let engine = Engine::open("fruit.db", Options::default())?;

    // A batch is atomic. `Sync` returns when it is on stable storage; `Buffered` when a crash of the process cannot hurt it.
    let mut batch = WriteBatch::new();
    batch.put(b"fruit/apple", b"red");
    batch.put(b"fruit/plum", b"blue");
    engine.write(batch, Durability::Sync)?;

    // A snapshot goes on seeing what was there, whatever is written after it.
    let before = engine.snapshot();
    let mut batch = WriteBatch::new();
    batch.delete_range(b"fruit/", b"fruit0");
    engine.write(batch, Durability::Sync)?;
    assert!(engine.get(b"fruit/apple")?.is_none());

    let bounds = IterOptions { version: Some(before.version()), ..IterOptions::prefix(b"fruit/") };
    let mut fruit = engine.iter(bounds)?;
    fruit.seek_to_first()?;
    while fruit.valid() {
        println!("{} is {}", fruit.key().escape_ascii(), fruit.value().escape_ascii());
        fruit.next()?;
    }
    engine.close()
}
