use super::*;
use ferrisdb_core::{Random, SplitMix64, Version, Versionstamp};

fn random_element(random: &mut SplitMix64, depth: usize) -> Element {
    let len = random.below(12) as usize;
    let bytes = |random: &mut SplitMix64| -> Vec<u8> {
        // Zeros and 0xFF are what escaping is about.
        (0..len).map(|_| [0, 0xFF, 1, b'a', random.next_u64() as u8][random.below(5) as usize]).collect()
    };
    match random.below(if depth < 3 { 11 } else { 10 }) {
        0 => Element::Null,
        1 => bytes(random).into(),
        2 => String::from_utf8_lossy(&bytes(random)).into_owned().into(),
        3 => ((random.next_u64() >> random.below(64)) as i64).into(),
        4 => (-((random.next_u64() >> random.below(64)) as i128)).into(),
        5 => BigInt::element(random.one_in(2), &bytes(random)),
        6 => f32::from_bits(random.next_u64() as u32).into(),
        7 => f64::from_bits(random.next_u64()).into(),
        8 => random.one_in(2).into(),
        9 => Element::Versionstamp(TupleVersionstamp {
            commit: Some(Versionstamp::new(Version::from_u64(random.below(1 << 50)), random.below(9) as u16)),
            user: random.below(4) as u16,
        }),
        _ => Element::Tuple((0..random.below(4)).map(|_| random_element(random, depth + 1)).collect()),
    }
}

/// Bytes that FoundationDB's specification and its bindings print.
#[test]
fn packed_bytes_are_the_published_ones() {
    let cases: Vec<(Tuple, &[u8])> = vec![
        ((Element::Null,).into(), b"\x00"),
        ((b"foo\x00bar",).into(), b"\x01foo\x00\xffbar\x00"),
        (("F\u{d4}O\u{0}bar",).into(), b"\x02F\xc3\x94O\x00\xffbar\x00"),
        (
            (Tuple::from((b"foo\x00bar", None::<i64>, Tuple::new())),).into(),
            b"\x05\x01foo\x00\xffbar\x00\x00\xff\x05\x00\x00",
        ),
        ((0,).into(), b"\x14"),
        ((1,).into(), b"\x15\x01"),
        ((-1,).into(), b"\x13\xfe"),
        ((-5_551_212,).into(), b"\x11\xabK\x93"),
        ((255, 256).into(), b"\x15\xff\x16\x01\x00"),
        ((i64::MIN,).into(), b"\x0c\x7f\xff\xff\xff\xff\xff\xff\xff"),
        ((u64::MAX,).into(), b"\x1c\xff\xff\xff\xff\xff\xff\xff\xff"),
        ((-i128::from(u64::MAX),).into(), b"\x0c\x00\x00\x00\x00\x00\x00\x00\x00"),
        ((u128::from(u64::MAX) + 1,).into(), b"\x1d\x09\x01\x00\x00\x00\x00\x00\x00\x00\x00"),
        ((-i128::from(u64::MAX) - 1,).into(), b"\x0b\xf6\xfe\xff\xff\xff\xff\xff\xff\xff\xff"),
        ((-42f32,).into(), b"\x20\x3d\xd7\xff\xff"),
        ((1.5f64,).into(), b"\x21\xbf\xf8\x00\x00\x00\x00\x00\x00"),
        ((true, false).into(), b"\x27\x26"),
        ((Element::Uuid([7; 16]),).into(), b"\x30\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07"),
    ];
    for (tuple, bytes) in cases {
        assert_eq!(tuple.pack().as_ref(), bytes, "{tuple:?}");
        assert_eq!(Tuple::unpack(bytes).expect("just packed"), tuple);
    }
}

/// Each number has one element, whichever type it came from.
#[test]
fn integers_are_one_type() {
    assert_eq!(Element::from(5u8), Element::from(5i128));
    assert!(matches!(Element::from(i64::MAX as u64), Element::Int(i64::MAX)));
    assert!(matches!(Element::from(i64::MAX as u64 + 1), Element::BigInt(_)));
    assert!(matches!(Element::from(i128::from(i64::MIN)), Element::Int(i64::MIN)));
    assert!(matches!(Element::from(i128::from(i64::MIN) - 1), Element::BigInt(_)));
}

/// Numbers, across the borders of their encodings, sort as numbers do.
#[test]
fn order_is_the_order_of_values() {
    let mut numbers = vec![0i128, 1, 255, 256, 65_535, 65_536, u64::MAX.into(), i128::from(u64::MAX) + 1, i128::MAX];
    numbers.extend(numbers.clone().iter().map(|number| -number));
    numbers.sort_unstable();
    let packed: Vec<Bytes> = numbers.iter().map(|&number| Tuple::from((number,)).pack()).collect();
    assert!(packed.windows(2).all(|pair| pair[0] <= pair[1]));
    let floats = [f64::NEG_INFINITY, -1.5, -0.0, 0.0, f64::MIN_POSITIVE, 1.5, f64::INFINITY];
    assert!(floats.windows(2).all(|pair| Tuple::from((pair[0],)) < Tuple::from((pair[1],))));
    assert!(Tuple::from(("a",)) < Tuple::from(("a", 1)), "a prefix comes first");
    assert!(Tuple::from(("a\u{0}",)) > Tuple::from(("a", 1)), "and a longer string after all of its tuples");
}

#[test]
fn a_versionstamp_leaves_a_hole() {
    let tuple = Tuple::from(("log", TupleVersionstamp::incomplete(3)));
    let template = tuple.pack_with_versionstamp(b"p").expect("it has one");
    let stamp = Versionstamp::new(Version::from_u64(9), 1);
    let key = ferrisdb_core::versionstamp::fill(&template, stamp).expect("the hole is inside");
    let complete = TupleVersionstamp { commit: Some(stamp), user: 3 };
    assert_eq!(key.as_ref(), [b"p".as_slice(), &Tuple::from(("log", complete)).pack()].concat());
    for wrong in [Tuple::from((1,)), Tuple::from((TupleVersionstamp::incomplete(0), TupleVersionstamp::incomplete(1)))]
    {
        assert_eq!(wrong.pack_with_versionstamp(b"").expect_err("not one").code(), Code::ClientInvalidOperation);
    }
}

/// Random tuples survive the round trip and sort as their elements; random and mutated bytes are an error or a tuple, never a panic.
#[test]
fn random_tuples_and_random_bytes() {
    let seed = 11;
    let mut random = SplitMix64::new(seed);
    for round in 0..20_000 {
        let tuple: Tuple = (0..random.below(5)).map(|_| random_element(&mut random, 0)).collect();
        let mut bytes = tuple.pack().to_vec();
        assert_eq!(Tuple::unpack(&bytes).expect("just packed"), tuple, "seed {seed}, round {round}");
        assert!(tuple.range().contains(&tuple.clone().with(1).pack()));
        if !bytes.is_empty() {
            let place = random.below(bytes.len() as u64) as usize;
            match random.below(3) {
                0 => bytes.truncate(place),
                1 => bytes[place] ^= 1 << random.below(8),
                _ => bytes.insert(place, random.next_u64() as u8),
            }
        }
        if let Ok(other) = Tuple::unpack(&bytes) {
            // What was read may have had a longer form, such as an integer with leading zeros; its own form is stable.
            assert_eq!(Tuple::unpack(&other.pack()).expect("just packed"), other, "seed {seed}, round {round}");
        }
    }
}

#[test]
fn too_deep_a_nest_is_an_error() {
    let error = Tuple::unpack(&[0x05; 10_000]).expect_err("it has no end");
    assert!(error.to_string().contains("nested more than 100 deep"), "{error}");
    let error = Tuple::unpack(b"\x15\x01\x99").expect_err("no such type");
    assert!(error.to_string().contains("type code 0x99 at byte 2"), "{error}");
}
