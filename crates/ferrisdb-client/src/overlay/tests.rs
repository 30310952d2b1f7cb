//! The overlay by itself: how it divides the key space, and what it sends.

use ferrisdb_core::{Bytes, KeyRange, Mutation, MutationKind};

use super::{Found, Overlay, Stretch};

const VALUE_MAX: usize = 100;

fn range(begin: &'static str, end: &'static str) -> KeyRange {
    KeyRange::new(begin, end)
}

/// Mutations as text.
fn sent(overlay: &Overlay) -> String {
    let one = |mutation: &Mutation| {
        format!("{:?} {} {}", mutation.kind, mutation.key.escape_ascii(), mutation.value.escape_ascii())
    };
    overlay.check();
    overlay.mutations().iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Where a walk goes from stretch to stretch, in both directions.
#[test]
fn stretches_divide_the_key_space() {
    let mut overlay = Overlay::default();
    overlay.clear(&range("c", "f"));
    overlay.clear(&KeyRange::single(b"h"));
    overlay.set(&Bytes::from("d"), Bytes::from("own"));
    overlay.set_stamped_value(&Bytes::from("k"), Bytes::from(vec![0; 14]));
    let (begin, end) = (Bytes::from("a"), Bytes::from("z"));
    let after = |at: &'static str| overlay.stretch_after(&Bytes::from(at), &end, false);
    let before = |at: &'static str| overlay.stretch_before(&Bytes::from(at), &begin, false);
    let (cleared, snapshot) =
        (|to: &'static str| Stretch::Cleared(to.into()), |to: &'static str| Stretch::Snapshot(to.into()));
    assert_eq!(after("a"), snapshot("c"));
    assert_eq!(after("c"), cleared("f"));
    assert_eq!(after("f"), snapshot("k"), "the single cleared key is read over");
    assert_eq!(after("k"), Stretch::Unreadable);
    assert_eq!(after("k\0"), snapshot("z"));
    assert_eq!(before("z"), snapshot("k\0"));
    assert_eq!(before("k\0"), Stretch::Unreadable);
    assert_eq!(before("k"), snapshot("f"));
    assert_eq!(before("f"), cleared("c"));
    assert_eq!(before("c"), snapshot("a"));
    assert_eq!(overlay.stretch_after(&Bytes::from("k"), &end, true), snapshot("z"), "bypassed");
    assert_eq!(overlay.stretch_before(&Bytes::from("k\0"), &begin, true), snapshot("f"), "bypassed");
}

#[test]
fn clears_go_first_and_cover_what_they_cleared() {
    let mut overlay = Overlay::default();
    overlay.set(&Bytes::from("a"), Bytes::from("1"));
    overlay.set(&Bytes::from("b"), Bytes::from("1"));
    overlay.clear(&range("b", "d"));
    overlay.set(&Bytes::from("c"), Bytes::from("2"));
    overlay.set(&Bytes::from("c"), Bytes::from("3"));
    overlay.atomic(&Bytes::from("e"), MutationKind::Add, Bytes::from("x"), VALUE_MAX);
    overlay.atomic(&Bytes::from("e"), MutationKind::BitOr, Bytes::from("y"), VALUE_MAX);
    assert_eq!(sent(&overlay), "ClearRange b d, Set a 1, Set c 3, Add e x, BitOr e y");
}

/// What is known is computed here; a value that disappears is cleared.
#[test]
fn operations_on_what_is_known_are_computed() {
    let mut overlay = Overlay::default();
    let key = Bytes::from("k");
    overlay.set(&key, Bytes::from("1"));
    overlay.atomic(&key, MutationKind::AppendIfFits, Bytes::from("2"), VALUE_MAX);
    assert_eq!(sent(&overlay), "Set k 12");
    overlay.atomic(&key, MutationKind::CompareAndClear, Bytes::from("12"), VALUE_MAX);
    assert_eq!(sent(&overlay), "ClearRange k k\\x00");
    assert!(matches!(overlay.find(b"k", false, VALUE_MAX), Found::Known(None)));
    overlay.atomic(&key, MutationKind::AppendIfFits, Bytes::from("3"), VALUE_MAX);
    assert_eq!(sent(&overlay), "Set k 3");
}

/// Around a versionstamped key the order of the calls is kept, for what can be the same key.
#[test]
fn a_versionstamped_key_seals_what_was_written_before_it() {
    let mut overlay = Overlay::default();
    overlay.clear(&range("a", "z"));
    overlay.set(&Bytes::from("m"), Bytes::from("1"));
    overlay.set(&Bytes::from("x"), Bytes::from("1"));
    overlay.set_stamped_key(Bytes::from("template"), Bytes::from("v"), &range("l", "n"));
    overlay.set(&Bytes::from("m"), Bytes::from("2"));
    overlay.clear(&range("m\0", "n"));
    overlay.atomic(&Bytes::from("mm"), MutationKind::Add, Bytes::from("3"), VALUE_MAX);
    assert_eq!(
        sent(&overlay),
        "ClearRange l n, Set m 1, SetVersionstampedKey template v, \
         ClearRange a l, ClearRange m\\x00 z, Set m 2, Set mm 3, Set x 1"
    );
    assert!(matches!(overlay.find(b"m", false, VALUE_MAX), Found::Unreadable));
    assert!(matches!(overlay.find(b"mm", false, VALUE_MAX), Found::Known(Some(value)) if value == "3"));
}

/// Operations on an unreadable key are kept, since nobody knows what they meet.
#[test]
fn operations_on_what_is_unreadable_are_kept_in_order() {
    let mut overlay = Overlay::default();
    let key = Bytes::from("k");
    overlay.set_stamped_value(&key, Bytes::from("template"));
    overlay.atomic(&key, MutationKind::Add, Bytes::from("1"), VALUE_MAX);
    overlay.set(&key, Bytes::from("2"));
    overlay.atomic(&key, MutationKind::Add, Bytes::from("3"), VALUE_MAX);
    assert_eq!(sent(&overlay), "SetVersionstampedValue k template, Add k 1, Set k 2, Add k 3");
    overlay.clear(&range("k", "l"));
    assert_eq!(sent(&overlay), "ClearRange k l");
    assert!(matches!(overlay.find(b"k", false, VALUE_MAX), Found::Known(None)));
}
