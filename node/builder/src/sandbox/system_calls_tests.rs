use super::*;

/// What the kernel does with a filter: enough of classic BPF to run ours.
fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(number.to_ne_bytes());
    data.extend(architecture.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    arguments
        .iter()
        .for_each(|argument| data.extend(argument.to_ne_bytes()));
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let Instruction {
            code,
            if_true,
            if_false,
            value,
        } = program[at];
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { if_true } else { if_false });
        match code {
            LOAD_WORD => {
                let from = value as usize;
                accumulator = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
            }
            AND => accumulator &= value,
            JUMP_IF_EQUAL => jump(accumulator == value),
            JUMP_IF_BITS => jump(accumulator & value != 0),
            RETURN => return value,
            other => panic!("instruction {other:#x}"),
        }
    }
}

#[test]
fn every_rule_holds_and_nothing_else_is_touched() {
    for thirty_two_bit in [false, true] {
        every_rule_holds(thirty_two_bit);
    }
}

fn every_rule_holds(thirty_two_bit: bool) {
    let program = filter(thirty_two_bit);
    for architecture in ARCHITECTURES {
        for number in 0..600 {
            let rule = architecture.rules.iter().find(|(ruled, _)| *ruled == number);
            for mode in [0u64, 0o755, 0o1777, 0o2755, 0o4755, 0o6777] {
                // The mode in one argument at a time; ones in all others.
                for index in 0..6 {
                    let mut arguments = [u64::MAX; 6];
                    arguments[index] = mode;
                    let expected = match rule {
                        Some((_, NoSetId(ruled))) => {
                            let forbidden = *ruled as usize != index || mode & 0o6000 != 0;
                            if forbidden { fail(libc::EPERM) } else { ALLOW }
                        }
                        Some((_, NotSupported)) => fail(libc::ENOTSUP),
                        Some((_, NotThereIn64Bit)) if thirty_two_bit => ALLOW,
                        Some((_, NotThere | NotThereIn64Bit)) => fail(libc::ENOSYS),
                        // No family is any of these modes.
                        Some((_, Families)) => fail(libc::EAFNOSUPPORT),
                        None => ALLOW,
                    };
                    let found = run(&program, architecture.audit, number, arguments);
                    assert_eq!(found, expected, "call {number} with {mode:o} as argument {index}");
                }
            }
        }
    }
}

#[test]
fn only_sockets_that_a_namespace_keeps_apart_are_made() {
    let program = filter(false);
    for architecture in ARCHITECTURES {
        let calls: Vec<u32> = architecture
            .rules
            .iter()
            .filter(|(_, rule)| matches!(rule, Families))
            .map(|(number, _)| *number)
            .collect();
        assert_eq!(calls.len(), 2);
        for number in calls {
            for family in 0..50u64 {
                let allowed = [1, 2, 10, 16].contains(&family);
                let found = run(&program, architecture.audit, number, [family, 1, 0, 0, 0, 0]);
                let expected = if allowed { ALLOW } else { fail(libc::EAFNOSUPPORT) };
                assert_eq!(found, expected, "family {family}");
            }
        }
    }
}

#[test]
fn other_calling_conventions_do_not_get_around_it() {
    let program = filter(false);
    for architecture in ARCHITECTURES.iter().filter(|known| known.convention_bits != 0) {
        for &(number, _) in architecture.rules {
            let number = number | architecture.convention_bits;
            assert_ne!(
                run(&program, architecture.audit, number, [0o4755; 6]),
                ALLOW,
                "call {number:#x}"
            );
        }
    }
}

#[test]
fn other_architectures_run_undisturbed() {
    for number in 0..600 {
        assert_eq!(run(&filter(false), 0x1234, number, [0o4755; 6]), ALLOW);
    }
}

/// The kernel's own names for the numbers of this machine's architecture.
#[test]
#[cfg(target_arch = "x86_64")]
fn the_numbers_are_those_of_the_kernel() {
    let ruled: Vec<i64> = ARCHITECTURES[0]
        .rules
        .iter()
        .map(|(number, _)| i64::from(*number))
        .collect();
    for number in [
        libc::SYS_chmod,
        libc::SYS_fchmod,
        libc::SYS_fchmodat,
        libc::SYS_fchmodat2,
        libc::SYS_setxattr,
        libc::SYS_lsetxattr,
        libc::SYS_fsetxattr,
        libc::SYS_getxattr,
        libc::SYS_lgetxattr,
        libc::SYS_fgetxattr,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
    ] {
        assert!(ruled.contains(&number), "{number}");
    }
}
