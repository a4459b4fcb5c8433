use super::*;

const ANN: NodeKey = NodeKey([1; 32]);
const BOB: NodeKey = NodeKey([2; 32]);

fn blob(seed: u32) -> BlobDigest {
    BlobDigest::of(&seed.to_le_bytes())
}

fn up_to(end: u64) -> Vec<Range<u64>> {
    vec![Range { start: 0, end }]
}

fn pieces(plan: &mut Plan) -> Vec<Range<u64>> {
    let taken = std::iter::from_fn(|| plan.take(ANN));
    taken
        .map(|(_, job)| match job {
            Job::Piece { chunks, .. } => chunks,
            Job::Pack(files) => panic!("{files:?}"),
        })
        .collect()
}

#[test]
fn small_files_travel_together_within_bounds() {
    let mut plan = Plan::default();
    let files: Vec<_> = (0..10_000)
        .map(|seed| (blob(seed), u64::from(seed % 64) * 1000))
        .collect();
    plan.add_small(files.clone());
    let mut seen = vec![];
    while let Some((turn, Job::Pack(pack))) = plan.take(ANN) {
        assert!(pack.len() <= BLOBS_BATCH);
        assert!(pack.iter().map(|(_, size)| size).sum::<u64>() <= PACK_BYTES);
        seen.extend(pack);
        plan.finished(turn);
    }
    assert_eq!(seen, files);
    assert!(plan.is_done());
}

#[test]
fn a_large_file_is_cut_at_fixed_places() {
    let mut plan = Plan::default();
    let whole = PIECE_CHUNKS;
    let missing = [5..2 * whole + 1, 3 * whole..3 * whole + 7];
    assert_eq!(plan.add_large(blob(1), &missing), 4);
    assert_eq!(
        pieces(&mut plan),
        [
            5..whole,
            whole..2 * whole,
            2 * whole..2 * whole + 1,
            3 * whole..3 * whole + 7
        ]
    );
}

#[test]
fn the_larger_a_file_the_larger_its_pieces_up_to_a_bound() {
    let cut = |chunks: u64| {
        let mut plan = Plan::default();
        let count = plan.add_large(blob(1), &up_to(chunks)) as u64;
        let mut pieces = pieces(&mut plan);
        assert_eq!(pieces.len() as u64, count);
        let largest = pieces.iter().map(|piece| piece.end - piece.start).max().unwrap();
        pieces.sort_by_key(|piece| piece.start);
        let next = pieces.iter().fold(0, |next, piece| {
            assert_eq!(piece.start, next);
            piece.end
        });
        assert_eq!(next, chunks);
        (count, largest)
    };
    let cuts = |chunks: u64, of: u64, largest: u64| {
        let (count, found) = cut(chunks);
        assert_eq!(found, largest);
        let streams = WORKERS_PER_FAR_PROVIDER as u64;
        assert!((of..of + 2 * streams).contains(&count), "{count} of {of}");
    };
    cuts(PIECES * PIECE_CHUNKS, PIECES, PIECE_CHUNKS);
    cuts(PIECES * PIECE_CHUNKS + PIECES, PIECES / 2 + 1, 2 * PIECE_CHUNKS);
    cuts(3 * PIECES * LARGE_PIECE_CHUNKS, 3 * PIECES, LARGE_PIECE_CHUNKS);
}

/// Who reads a file while it comes has as much of it as can be.
#[test]
fn the_beginning_of_a_file_is_never_more_than_a_piece_for_each_stream_behind() {
    for streams in [1, 2, WORKERS_PER_FAR_PROVIDER] {
        for count in [3, PIECES, 3 * PIECES] {
            let mut plan = Plan::default();
            let (size, piece) = (count * LARGE_PIECE_CHUNKS, piece_of(count * LARGE_PIECE_CHUNKS));
            plan.add_large(blob(1), &up_to(size));
            let mut waiting: VecDeque<_> = pieces(&mut plan).into();
            let mut running: Vec<Range<u64>> = vec![];
            let mut came = 0;
            loop {
                running.retain(|piece| !piece.is_empty());
                let free = streams - running.len();
                running.extend(waiting.drain(..free.min(waiting.len())));
                let next = running.iter().chain(&waiting).map(|piece| piece.start).min();
                let Some(beginning) = next else {
                    break;
                };
                assert!(
                    came - beginning <= (streams as u64 - 1) * piece,
                    "{came} of {size}, {beginning}"
                );
                for piece in &mut running {
                    let step = GROUP.min(piece.end - piece.start);
                    piece.start += step;
                    came += step;
                }
            }
            assert_eq!(came, size);
        }
    }
}

#[test]
fn streams_that_begin_together_do_not_come_to_their_ends_together() {
    let mut plan = Plan::default();
    plan.add_large(blob(1), &up_to(PIECES * PIECE_CHUNKS));
    let pieces = pieces(&mut plan);
    let first = &pieces[..WORKERS_PER_FAR_PROVIDER];
    let lengths: Vec<u64> = first.iter().map(|piece| piece.end - piece.start).collect();
    assert!(
        lengths.is_sorted_by(|one, next| one + GROUP <= *next),
        "{lengths:?}"
    );
}

#[test]
fn work_given_back_is_done_by_another_and_nothing_ends_before() {
    let mut plan = Plan::default();
    plan.add_small([(blob(1), 1), (blob(2), 1)]);
    let (turn, _) = plan.take(ANN).unwrap();
    assert!(plan.take(BOB).is_none());
    assert!(!plan.is_done(), "it may come back");
    assert!(plan.brought(turn, 1));
    plan.give_back(turn);
    let (turn, job) = plan.take(BOB).unwrap();
    assert_eq!(job, Job::Pack(vec![(blob(2), 1)]));
    plan.finished(turn);
    assert!(plan.is_done());
}

#[test]
fn who_has_nothing_to_do_takes_half_of_what_a_slower_one_has_left() {
    let mut plan = Plan::default();
    plan.add_large(blob(1), &up_to(PIECE_CHUNKS));
    let speed = |of: f64| move |provider| if provider == ANN { 10.0 } else { of };
    let (ann, _) = plan.take(ANN).unwrap();
    assert_eq!(plan.reached(ann, 100), Some(100..PIECE_CHUNKS));
    assert!(plan.share(BOB, speed(9.0)).is_none(), "bob is slower");
    assert!(plan.share(ANN, speed(9.0)).is_none(), "that is ann's own");
    let middle = (100 + (PIECE_CHUNKS - 100) / 2).next_multiple_of(GROUP);
    let (bob, _, chunks) = plan.share(BOB, speed(10.0)).unwrap();
    assert_eq!(chunks, middle..PIECE_CHUNKS);
    // Ann is told, whatever she has brought meanwhile; and what bob fails to bring is there again.
    assert_eq!(plan.reached(ann, 200), Some(200..middle));
    assert_eq!(plan.reached(bob, middle + 50), Some(middle + 50..PIECE_CHUNKS));
    plan.give_back(bob);
    assert_eq!(plan.reached(ann, middle + 1000), Some(middle..middle));
    plan.finished(ann);
    assert!(!plan.is_done());
    assert_eq!(pieces(&mut plan).pop(), Some(middle + 50..PIECE_CHUNKS));
}

#[test]
fn there_are_no_more_workers_than_pieces() {
    let mut plan = Plan::default();
    assert!(!plan.wants_more(0));
    plan.add_large(blob(1), &up_to(3 * PIECE_CHUNKS));
    assert!(plan.wants_more(2) && !plan.wants_more(3));
    let (turn, _) = plan.take(ANN).unwrap();
    assert!(plan.wants_more(2), "who took it is one of the two");
    plan.finished(turn);
    assert!(!plan.wants_more(2));
}

#[test]
fn what_a_silent_one_has_left_is_brought_by_another_once_each() {
    let mut plan = Plan::default();
    plan.add_large(blob(1), &up_to(PIECE_CHUNKS));
    plan.add_small([(blob(2), 1), (blob(3), 1)]);
    let (piece, _) = plan.take(ANN).unwrap();
    let (pack, _) = plan.take(ANN).unwrap();
    assert_eq!(plan.reached(piece, 100), Some(100..PIECE_CHUNKS));
    assert!(plan.brought(pack, 1));
    let now = Instant::now();
    let later = now + 2 * HEDGE_SILENCE;
    let both = || [ANN, BOB].into_iter();
    assert!(plan.hedge(BOB, now).is_none(), "nobody is silent");
    assert!(!plan.wants_another(now, [ANN].into_iter()));
    assert!(plan.wants_another(later, [ANN].into_iter()) && !plan.wants_another(later, both()));
    assert!(plan.hedge(ANN, later).is_none(), "it is ann who is silent");
    let taken = [(); 2].map(|()| plan.hedge(BOB, later).unwrap());
    let expected = [
        Job::Pack(vec![(blob(3), 1)]),
        Job::Piece {
            blob: blob(1),
            chunks: 100..PIECE_CHUNKS,
        },
    ];
    assert!(
        expected
            .iter()
            .all(|job| taken.iter().any(|(_, taken)| taken == job)),
        "{taken:?}"
    );
    // Ann wakes up in vain.
    assert_eq!(plan.reached(piece, 200), None);
    assert!(!plan.brought(pack, 1));
    plan.finished(piece);
    plan.give_back(pack);
    assert!(!plan.is_done() && plan.jobs.is_empty() && !plan.is_released(piece));
    let again = later + 2 * HEDGE_SILENCE;
    assert!(plan.hedge(BOB, again).is_none(), "bob is at it");
    assert!(plan.wants_another(again, both()));
    let cat = NodeKey([3; 32]);
    let (last, _) = plan.hedge(cat, again).unwrap();
    plan.finished(last);
    let (last, _) = plan.hedge(cat, again).unwrap();
    plan.give_back(last);
    assert!(plan.is_released(piece), "there is other work");
    let (last, _) = plan.take(BOB).unwrap();
    plan.finished(last);
    assert!(plan.is_done() && plan.is_released(pack));
}

#[test]
fn who_waits_for_this_node_itself_is_not_silent() {
    let mut plan = Plan::default();
    plan.add_small([(blob(1), 1)]);
    let (turn, _) = plan.take(ANN).unwrap();
    let later = Instant::now() + 2 * HEDGE_SILENCE;
    let signs = plan.signs(turn);
    assert!(!signs.has_brought());
    signs.came();
    assert!(plan.hedge(BOB, later).is_none());
    signs.waits();
    assert!(signs.has_brought(), "it is slow, and not gone");
    assert!(plan.hedge(BOB, later + HEDGE_SILENCE).is_some());
}

/// A laptop that is closed in the middle of a transfer.
#[test]
fn who_has_brought_something_at_once_is_silent_soon() {
    let mut plan = Plan::default();
    plan.add_large(blob(1), &up_to(3 * PIECE_CHUNKS));
    let turns = [(); 3].map(|()| plan.take(ANN).unwrap().0);
    let begun = Instant::now();
    assert!(
        plan.next_silence(begun).unwrap() > LEAST_SILENCE,
        "nothing has come"
    );
    let signs = plan.signs(turns[0]);
    signs.came();
    let now = Instant::now();
    // As long as this machine took for these lines, twice.
    let soon = now + plan.rhythms[&ANN].patience();
    assert!(plan.hedge(BOB, soon).is_some());
    assert!(plan.hedge(BOB, soon).is_some());
    assert!(plan.hedge(BOB, soon).is_none(), "what came is dealt with");
    plan.finished(turns[0]);
}

#[test]
fn to_be_asked_is_part_of_the_waiting() {
    let mut plan = Plan::default();
    plan.add_small([(blob(1), 1)]);
    let (turn, _) = plan.take(ANN).unwrap();
    let signs = plan.signs(turn);
    std::thread::sleep(Duration::from_millis(5));
    signs.waits();
    signs.came();
    let longest = *lock(&plan.rhythms[&ANN].0);
    assert!(longest >= Some(Duration::from_millis(5)), "{longest:?}");
}

#[test]
fn who_was_too_slow_may_have_it_again_where_the_next_one_may_be_gone() {
    let mut plan = Plan::default();
    plan.add_large(blob(1), &up_to(PIECE_CHUNKS));
    let (first, _) = plan.take(ANN).unwrap();
    plan.signs(first).came();
    plan.signs(first).waits();
    let soon = Instant::now() + plan.rhythms[&ANN].patience();
    let (second, _) = plan.hedge(BOB, soon).unwrap();
    let signs = plan.signs(second);
    signs.came();
    signs.waits();
    let (now, patience) = (Instant::now(), plan.rhythms[&BOB].patience());
    if patience < HEDGE_SILENCE {
        assert!(plan.hedge(ANN, now + patience).is_none(), "ann had it");
    }
    assert!(plan.has_work(ANN, |_| 0.0, now + HEDGE_SILENCE));
    assert!(plan.hedge(ANN, now + HEDGE_SILENCE).is_some());
}

#[test]
fn who_takes_its_time_is_waited_for_accordingly_within_bounds() {
    let rhythm = Rhythm::default();
    assert_eq!(rhythm.patience(), HEDGE_SILENCE);
    let waited = |milliseconds| {
        rhythm.waited(Duration::from_millis(milliseconds));
        rhythm.patience()
    };
    assert_eq!(waited(1), LEAST_SILENCE);
    assert_eq!(waited(300), Duration::from_millis(600));
    assert_eq!(waited(20), Duration::from_millis(600), "it may be so slow again");
    assert_eq!(waited(5000), HEDGE_SILENCE);
}

#[test]
fn little_is_not_shared() {
    let mut plan = Plan::default();
    plan.add_large(blob(1), &up_to(2 * LEAST_SHARE));
    let (ann, _) = plan.take(ANN).unwrap();
    plan.reached(ann, 1);
    assert!(plan.share(BOB, |_| 1.0).is_none());
    let mut plan = Plan::default();
    plan.add_small([(blob(1), 1 << 20)]);
    plan.take(ANN).unwrap();
    assert!(plan.share(BOB, |_| 1.0).is_none());
}
