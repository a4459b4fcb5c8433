//! Changes bytes in ways that parsers get wrong: the same ones in every run.
//!
//! `TVIX_NODE_MUTATIONS=N` tries N changes of every sample instead of the few that a test run has time for.

/// The variable that says how many changes are tried.
const HOW_MANY: &str = "TVIX_NODE_MUTATIONS";

/// Changes of one sample where nothing else is said.
fn rounds(usual: u64) -> u64 {
    std::env::var(HOW_MANY).map_or(usual, |number| {
        number
            .parse()
            .unwrap_or_else(|_| panic!("{HOW_MANY} is '{number}', not a number"))
    })
}

/// Numbers without a pattern, the same for each seed.
pub struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        // splitmix64 (Steele, Lea and Flood, 2014).
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below a bound, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("it is below an usize")
    }
}

/// Lengths and counts that overflow something or ask for too much.
const NUMBERS: [u64; 8] = [
    0,
    1,
    0xff,
    0xffff,
    0x7fff_ffff,
    u32::MAX as u64,
    i64::MAX as u64,
    u64::MAX,
];

/// One change, or a few, of these bytes.
pub fn changed(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut changed = bytes.to_vec();
    for _ in 0..=random.below(3) {
        let length = changed.len();
        if length == 0 {
            changed.push(0);
            continue;
        }
        let at = random.below(length);
        let end = (at + 1 + random.below(40)).min(length);
        match random.below(9) {
            0 => changed[at] ^= 1 << random.below(8),
            1 => changed[at] = u8::try_from(random.below(256)).expect("a byte"),
            2 => drop(changed.drain(at..end)),
            3 => changed.truncate(at),
            // Something twice, where it was or elsewhere.
            4 => {
                let piece = changed[at..end].to_vec();
                let to = random.below(length + 1);
                changed.splice(to..to, piece);
            }
            // Two pieces change places.
            5 => {
                let piece: Vec<u8> = changed.drain(at..end).collect();
                let to = random.below(changed.len() + 1);
                changed.splice(to..to, piece);
            }
            // A number.
            6 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let at = at & !7;
                for (place, byte) in changed[at..].iter_mut().zip(number) {
                    *place = byte;
                }
            }
            // Much of the same: depth and length.
            7 => {
                let piece = changed[at..end].repeat(1 + random.below(100));
                changed.splice(at..at, piece);
            }
            _ => {
                let byte = u8::try_from(random.below(256)).expect("a byte");
                changed.insert(at, byte);
            }
        }
    }
    changed
}

/// What is being looked at: told where that ends in a panic.
struct Told<'a>(&'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.0.escape_ascii());
        }
    }
}

/// Has `check` look at changes of `sample`, `usual` many where nothing else is said, and tells which one it
/// was where it fails. `check` says whether the change was refused; most must be.
pub fn each_change(name: &str, sample: &[u8], usual: u64, mut check: impl FnMut(&[u8]) -> bool) {
    each_round(name, usual, |random| {
        let changed = changed(sample, random);
        let told = Told(&changed);
        check(told.0)
    });
}

/// Has `check` make changes itself, and tells in which round where it fails. The rest is as for [`each_change`].
pub fn each_round(name: &str, usual: u64, mut check: impl FnMut(&mut Random) -> bool) {
    let rounds = rounds(usual);
    let mut refused = 0;
    for round in 0..rounds {
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&mut Random(round))));
        match outcome {
            Ok(is_refused) => refused += u64::from(is_refused),
            Err(panic) => {
                eprintln!("{name}, change {round}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    assert!(refused * 2 > rounds, "{name}: {refused} of {rounds} refused");
}
