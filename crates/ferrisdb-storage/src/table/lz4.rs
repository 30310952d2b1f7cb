//! Compresses a block into the LZ4 block format, which any LZ4 decoder reads.
//!
//! The format leaves it to the compressor which repetitions it looks for. The usual fast one looks up every position at first, then every
//! second, every third and so on for as long as it finds nothing, and remembers only the positions that it looked up. A value whose first
//! half is random has slowed it to every sixth byte by the time the second half begins, and there it finds a repetition of distance 85
//! only once a multiple of 85 is a multiple of 6: it may store several hundred bytes before it meets one that it remembers.
//!
//! So here each fourth position is remembered whether it is looked up or not (a store, without the read, the comparison and the branch of a
//! look-up), and strides are odd. Four look-ups in a row then meet every residue of four: a repetition is found within
//! four strides wherever it begins, and what lies between its begin and that place is recovered by extending it backwards.
//!
//! # Format
//!   sequences of: u8 token (literals << 4 | match length − 4), more length bytes of the literals, literals, u16 distance, more length
//!   bytes of the match. A nibble of 15 is followed by bytes to add, the last of which is below 255. The last sequence has literals only.
//! Decoders demand that the last 5 bytes are literals and that no match begins in the last 12.

use super::block::common_prefix_len;

/// The longest input: positions are remembered in 16 bits, and so no distance is too long for the format either.
pub(super) const INPUT_BYTES_MAX: usize = 1 << 16;

/// Shorter repetitions than this have no form.
const MATCH_BYTES_MIN: usize = 4;

/// A match does not begin in so many last bytes.
const MATCH_START_MARGIN: usize = 12;

/// Nor does one end in these.
const LAST_LITERALS: usize = 5;

/// 4,096 places of two bytes: what the processor's first cache holds beside the block.
const TABLE_BITS: u32 = 12;

/// Look-ups in vain before the stride grows.
const LOOK_UPS_PER_STRIDE: usize = 32;

/// Positions that are multiples of this are always remembered. A power of two: odd strides share no factor with it.
const REMEMBERED_EVERY: usize = 4;

/// The working memory: where each hash of four bytes was last seen. Cleared for every block, so that a block's bytes follow from its content.
pub(super) struct Positions(Box<[u16; 1 << TABLE_BITS]>);

impl Default for Positions {
    fn default() -> Positions {
        Positions(Box::new([0; 1 << TABLE_BITS]))
    }
}

impl Positions {
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "an input has at most 2^16 bytes, so a position has 16 bits")]
    fn replace(&mut self, four_bytes: u32, position: usize) -> usize {
        // Fibonacci hashing: 2^32 divided by the golden ratio; the high bits are the best mixed.
        let hash = four_bytes.wrapping_mul(0x9E37_79B1) >> (32 - TABLE_BITS);
        usize::from(std::mem::replace(&mut self.0[hash as usize], position as u16))
    }
}

#[inline]
fn four_at(input: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(input[at..at + 4].try_into().expect("a slice of four bytes"))
}

/// Appends the compressed form of `input` to `out`. It may be longer than the input, by a 255th and some bytes.
///
/// # Panics
/// If the input is longer than [`INPUT_BYTES_MAX`].
pub(super) fn compress(input: &[u8], positions: &mut Positions, out: &mut Vec<u8>) {
    assert!(input.len() <= INPUT_BYTES_MAX, "longer inputs are for another compressor");
    out.reserve(input.len() + input.len() / 255 + 16);
    // Invariant: everything before it is in `out`.
    let mut literals_from = 0;
    if let Some(last_start) = input.len().checked_sub(MATCH_START_MARGIN) {
        positions.0.fill(0);
        // A cleared place says position 0, which is a position like any other: what lies there is compared.
        let mut from = 1;
        while let Some((mut at, mut earlier)) = find(input, from, last_start, positions) {
            let before = input[literals_from..at].iter().rev().zip(input[..earlier].iter().rev());
            let backwards = before.take_while(|(byte, other)| byte == other).count();
            (at, earlier) = (at - backwards, earlier - backwards);
            let len = common_prefix_len(&input[at..input.len() - LAST_LITERALS], &input[earlier..]);
            put_sequence(out, &input[literals_from..at], at - earlier, len);
            literals_from = at + len;
            if literals_from > last_start {
                break;
            }
            positions.replace(four_at(input, literals_from - 2), literals_from - 2);
            from = literals_from;
        }
    }
    let literals = &input[literals_from..];
    out.push(nibble(literals.len()) << 4);
    put_rest(out, literals.len());
    out.extend_from_slice(literals);
}

/// The first position from `from` to `last_start`, among those looked up, whose four bytes came before, and where they did.
#[inline]
fn find(input: &[u8], from: usize, last_start: usize, positions: &mut Positions) -> Option<(usize, usize)> {
    let mut at = from;
    let mut look_ups = LOOK_UPS_PER_STRIDE;
    while at <= last_start {
        let four = four_at(input, at);
        let earlier = positions.replace(four, at);
        if four_at(input, earlier) == four {
            return Some((at, earlier));
        }
        let next = at + ((look_ups / LOOK_UPS_PER_STRIDE) | 1);
        look_ups += 1;
        let mut between = (at / REMEMBERED_EVERY + 1) * REMEMBERED_EVERY;
        while between < next.min(last_start) {
            positions.replace(four_at(input, between), between);
            between += REMEMBERED_EVERY;
        }
        at = next;
    }
    None
}

fn put_sequence(out: &mut Vec<u8>, literals: &[u8], distance: usize, len: usize) {
    let more = len - MATCH_BYTES_MIN;
    out.push(nibble(literals.len()) << 4 | nibble(more));
    put_rest(out, literals.len());
    out.extend_from_slice(literals);
    let distance = u16::try_from(distance).expect("two positions of one input are less than 2^16 apart");
    out.extend_from_slice(&distance.to_le_bytes());
    put_rest(out, more);
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the minimum with 15 fits a byte")]
fn nibble(len: usize) -> u8 {
    len.min(15) as u8
}

/// What a nibble cannot say of a length.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "the remainder by 255 fits a byte")]
fn put_rest(out: &mut Vec<u8>, len: usize) {
    if let Some(rest) = len.checked_sub(15) {
        out.extend(std::iter::repeat_n(255, rest / 255));
        out.push((rest % 255) as u8);
    }
}

#[cfg(test)]
mod tests {
    use ferrisdb_core::{Random, SplitMix64};

    use super::*;

    fn compressed(input: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        compress(input, &mut Positions::default(), &mut out);
        out
    }

    /// The rules that decoders rely on, checked sequence by sequence. Returns what the bytes stand for.
    fn decode_strictly(mut rest: &[u8]) -> Vec<u8> {
        fn take(rest: &mut &[u8], len: usize) -> Vec<u8> {
            let (head, tail) = rest.split_at(len);
            *rest = tail;
            head.to_vec()
        }
        fn length(rest: &mut &[u8], nibble: u8) -> usize {
            let mut sum = usize::from(nibble);
            let mut more = nibble == 15;
            while more {
                let byte = take(rest, 1)[0];
                sum += usize::from(byte);
                more = byte == 255;
            }
            sum
        }
        let mut out: Vec<u8> = Vec::new();
        let mut last_match = None;
        loop {
            let token = take(&mut rest, 1)[0];
            let literals = length(&mut rest, token >> 4);
            out.extend(take(&mut rest, literals));
            if rest.is_empty() {
                assert_eq!(token & 15, 0, "the last sequence has no match");
                if let Some((start, end)) = last_match {
                    assert!(out.len() - start >= MATCH_START_MARGIN && out.len() - end >= LAST_LITERALS);
                }
                return out;
            }
            let distance = usize::from(u16::from_le_bytes(take(&mut rest, 2).try_into().unwrap()));
            assert!((1..=out.len()).contains(&distance));
            let start = out.len();
            let len = MATCH_BYTES_MIN + length(&mut rest, token & 15);
            (0..len).for_each(|_| out.push(out[out.len() - distance]));
            last_match = Some((start, out.len()));
        }
    }

    fn check(input: &[u8], positions: &mut Positions) -> usize {
        let mut out = b"before".to_vec();
        compress(input, positions, &mut out);
        let out = &out[6..];
        assert!(out.len() <= input.len() + input.len() / 255 + 16);
        assert_eq!(decode_strictly(out), input);
        let mut decoded = vec![0; input.len()];
        assert_eq!(lz4_flex::block::decompress_into(out, &mut decoded).unwrap(), input.len());
        assert_eq!(decoded, input, "as another's decoder reads it");
        out.len()
    }

    /// Random mixtures of noise, repetitions of all distances and runs, of all lengths near the limits, come back as they were, with working memory
    /// that was used for another block before.
    #[test]
    fn what_is_compressed_comes_back() {
        let mut positions = Positions::default();
        let mut random = SplitMix64::new(0x1214);
        for round in 0..4000 {
            let len = match round % 4 {
                0 => random.below(40),
                1 => random.below(600),
                2 => random.below(9000),
                _ if round < 100 => random.below(INPUT_BYTES_MAX as u64 + 1),
                _ => 4096,
            };
            let len = usize::try_from(len).unwrap();
            let mut input: Vec<u8> = Vec::with_capacity(len);
            while input.len() < len {
                let longest = [8, 40, 700][usize::try_from(random.below(3)).unwrap()];
                let piece = usize::try_from(1 + random.below(longest)).unwrap().min(len - input.len());
                let alphabet = [2, 256][usize::try_from(random.below(2)).unwrap()];
                if random.below(2) == 0 || input.is_empty() {
                    input.extend((0..piece).map(|_| u8::try_from(random.below(alphabet)).unwrap()));
                } else {
                    let distance = 1 + usize::try_from(random.below(input.len() as u64)).unwrap();
                    (0..piece).for_each(|_| input.push(input[input.len() - distance]));
                }
            }
            check(&input, &mut positions);
        }
        check(&vec![7; INPUT_BYTES_MAX], &mut positions);
        check(&[], &mut positions);
    }

    /// The same block gives the same bytes whatever was compressed before it.
    #[test]
    fn a_blocks_bytes_follow_from_its_content() {
        let (one, other) = (b"one and one and one and one and one".repeat(9), b"other and other, and others".repeat(7));
        let mut positions = Positions::default();
        check(&other, &mut positions);
        let mut again = Vec::new();
        compress(&one, &mut positions, &mut again);
        assert_eq!(again, compressed(&one));
    }

    /// A repetition is found after noise, whatever its period and wherever it begins: half of a block is noise, the other half is one short text over
    /// and over, and next to nothing but the noise and the text once is left. A compressor that remembers only where it looked stores up to
    /// several hundred bytes more for some periods.
    #[test]
    fn a_repetition_is_found_behind_noise() {
        let mut random = SplitMix64::new(3);
        for period in 16..120 {
            let mut input: Vec<u8> = (0..1024).map(|_| random.next_u64().to_le_bytes()[0]).collect();
            let text: Vec<u8> = (0..period).map(|_| random.next_u64().to_le_bytes()[0]).collect();
            input.extend(text.iter().cycle().take(1024));
            let len = compressed(&input).len();
            assert!(len < 1024 + 2 * period + 120, "period {period}: {len} bytes");
        }
    }
}
