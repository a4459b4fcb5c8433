use super::*;

/// As the kernel tells people, in another place than the one that is asked.
fn memory_of_the_machine() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .unwrap();
    let kibibytes: u64 = line.trim().strip_suffix(" kB").unwrap().parse().unwrap();
    kibibytes * 1024
}

#[test]
fn a_build_for_another_has_a_share_of_the_memory_whatever_it_asks_for() {
    let whole = memory_of_the_machine();
    let share = whole / 100 * SERVED_MEMORY;
    let near = |bytes: u64| bytes.abs_diff(share) <= whole / 100;
    let memory = |asked| {
        let limits = BuildLimits {
            memory: asked,
            ..BuildLimits::NONE
        };
        bounded(limits).memory.unwrap()
    };
    for asked in [None, Some(whole), Some(u64::MAX)] {
        assert!(near(memory(asked)), "{asked:?}: {} of {whole}", memory(asked));
    }
    assert_eq!(memory(Some(1 << 20)), 1 << 20);
}

#[test]
fn what_a_request_does_not_bound_is_bounded_here() {
    let own = bounded(BuildLimits::NONE);
    let expected = (
        Some(SERVED_TIME),
        Some(SERVED_SILENCE),
        Some(SERVED_LOG),
        Some(SERVED_DISK),
    );
    assert_eq!((own.time, own.silence, own.log, own.disk), expected);
    let endless = BuildLimits {
        time: Some(u64::MAX),
        silence: Some(u64::MAX),
        log: Some(u64::MAX),
        disk: Some(u64::MAX),
        memory: Some(u64::MAX),
        processes: Some(u64::MAX),
    };
    assert_eq!(bounded(endless), own);
    assert_eq!(own.processes(), BuildLimits::PROCESSES);
}

#[tokio::test(start_paused = true)]
async fn who_lets_this_node_wait_for_derivations_is_refused_after_a_while() {
    let derivation = StorePath::from_parts([1; 20], "slow.drv").unwrap();
    let since = tokio::time::Instant::now();
    let looked = considered::<()>(&derivation, std::future::pending());
    let refused = tokio::time::timeout(2 * CONSIDERED_TIME, looked).await;
    let refused = refused.expect("it is not waited for longer").unwrap_err();
    assert_eq!(refused.reason, RefusalReason::Busy);
    assert!(
        refused
            .message
            .contains("slow.drv is made of did not come within 120 s"),
        "{refused}"
    );
    assert!(since.elapsed() >= CONSIDERED_TIME);
    let come = considered(&derivation, async {
        tokio::time::sleep(CONSIDERED_TIME / 2).await;
        Ok(7)
    });
    assert_eq!(come.await.unwrap(), 7);
}
