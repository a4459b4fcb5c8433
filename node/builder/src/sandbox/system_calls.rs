//! The filter on system calls.
//!
//! As Nix 2.34 (`setupSeccomp`): no setuid or setgid bits (`EPERM`), no extended attributes
//! (`ENOTSUP`), for the machine's own architecture and the 32-bit one beside it. Besides, sockets of the families
//! alone that a network namespace keeps apart (`EAFNOSUPPORT`): `AF_VSOCK`, for one, is the same for all of the
//! machine, so builds would meet there, and meet what runs the machine. What would get around this is not there (`ENOSYS`,
//! on which programs go another way): `io_uring`, which does the same without a call for each, and the old
//! `socketcall` of 32-bit programs, whose arguments a filter cannot see, except in builds for a 32-bit system, whose C
//! library knows no other. Whatever else is allowed, other architectures included: a filter that kills on those breaks
//! 32-bit builders.
//!
//! A small assembler of our own for classic BPF instead of a library: the program has one shape.

use crate::sys::Instruction;

/// Mode bits that builds must not set.
const SET_ID_BITS: u32 = 0o6000;

/// Which argument holds the mode.
#[derive(Clone, Copy)]
enum Rule {
    /// Fail with `EPERM` where the argument of this index has [`SET_ID_BITS`].
    NoSetId(u32),
    /// Fail with `ENOTSUP`.
    NotSupported,
    /// Fail with `ENOSYS`.
    NotThere,
    /// The same, except in builds for a 32-bit system.
    NotThereIn64Bit,
    /// Fail with `EAFNOSUPPORT` where the first argument is none of [`FAMILIES`].
    Families,
}

/// Families of sockets that builds may have: those of this machine alone (`AF_UNIX`), IPv4 and IPv6, and the kernel's own
/// (`AF_NETLINK`), with which programs look at interfaces. All are bound to a network namespace.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

struct Architecture {
    /// `AUDIT_ARCH_*`.
    audit: u32,
    /// Bits of the number that choose a calling convention and not a call.
    convention_bits: u32,
    rules: &'static [(u32, Rule)],
}

use Rule::{Families, NoSetId, NotSupported, NotThere, NotThereIn64Bit};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        audit: 0xc000_003e,
        convention_bits: 0x4000_0000, // x32
        rules: &[
            (90, NoSetId(1)),  // chmod
            (91, NoSetId(1)),  // fchmod
            (268, NoSetId(2)), // fchmodat
            (452, NoSetId(2)), // fchmodat2
            (188, NotSupported),
            (189, NotSupported),
            (190, NotSupported), // setxattr, lsetxattr, fsetxattr
            (191, NotSupported),
            (192, NotSupported),
            (193, NotSupported), // getxattr, lgetxattr, fgetxattr
            (463, NotSupported), // setxattrat
            (464, NotSupported), // getxattrat
            (41, Families),      // socket
            (53, Families),      // socketpair
            (425, NotThere),
            (426, NotThere),
            (427, NotThere), // io_uring_setup, io_uring_enter, io_uring_register
        ],
    },
    Architecture {
        audit: 0x4000_0003, // i386
        convention_bits: 0,
        rules: &[
            (15, NoSetId(1)),
            (94, NoSetId(1)),
            (306, NoSetId(2)),
            (452, NoSetId(2)),
            (226, NotSupported),
            (227, NotSupported),
            (228, NotSupported),
            (229, NotSupported),
            (230, NotSupported),
            (231, NotSupported),
            (463, NotSupported),
            (464, NotSupported),
            (359, Families),
            (360, Families),
            (102, NotThereIn64Bit), // socketcall
            (425, NotThere),
            (426, NotThere),
            (427, NotThere),
        ],
    },
];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURES: &[Architecture] = &[
    Architecture {
        audit: 0xc000_00b7,
        convention_bits: 0,
        rules: GENERIC,
    },
    Architecture {
        audit: 0x4000_0028, // arm
        convention_bits: 0,
        rules: &[
            (15, NoSetId(1)),
            (94, NoSetId(1)),
            (333, NoSetId(2)),
            (452, NoSetId(2)),
            (226, NotSupported),
            (227, NotSupported),
            (228, NotSupported),
            (229, NotSupported),
            (230, NotSupported),
            (231, NotSupported),
            (463, NotSupported),
            (464, NotSupported),
            (281, Families),
            (288, Families),
            (425, NotThere),
            (426, NotThere),
            (427, NotThere),
        ],
    },
];

#[cfg(target_arch = "riscv64")]
const ARCHITECTURES: &[Architecture] = &[Architecture {
    audit: 0xc000_00f3,
    convention_bits: 0,
    rules: GENERIC,
}];

/// The numbers that newer architectures share.
#[cfg(any(target_arch = "aarch64", target_arch = "riscv64"))]
const GENERIC: &[(u32, Rule)] = &[
    (52, NoSetId(1)),
    (53, NoSetId(2)),
    (452, NoSetId(2)),
    (5, NotSupported),
    (6, NotSupported),
    (7, NotSupported),
    (8, NotSupported),
    (9, NotSupported),
    (10, NotSupported),
    (463, NotSupported),
    (464, NotSupported),
    (198, Families),
    (199, Families),
    (425, NotThere),
    (426, NotThere),
    (427, NotThere), // io_uring_setup, io_uring_enter, io_uring_register
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64", target_arch = "riscv64")))]
compile_error!("the filter on system calls does not know the numbers of this architecture yet");

// Instruction classes and modes of classic BPF (linux/bpf_common.h).
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_BITS: u16 = 0x45;
const RETURN: u16 = 0x06;

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

// Offsets in struct seccomp_data.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

fn fail(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno.cast_unsigned()
}

const fn plain(code: u16, value: u32) -> Instruction {
    Instruction {
        code,
        if_true: 0,
        if_false: 0,
        value,
    }
}

const fn jump(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction {
        code,
        if_true,
        if_false,
        value,
    }
}

/// The low half of an argument: where a 64-bit value has it depends on the order of bytes.
const fn argument(index: u32) -> u32 {
    let low_half = if cfg!(target_endian = "big") { 4 } else { 0 };
    ARGUMENTS + index * 8 + low_half
}

/// The whole program. `thirty_two_bit`: for a build for a 32-bit system.
pub(super) fn filter(thirty_two_bit: bool) -> Vec<Instruction> {
    let mut program = vec![plain(LOAD_WORD, ARCHITECTURE)];
    for architecture in ARCHITECTURES {
        let section = section(architecture, thirty_two_bit);
        // No section has more than some 80 instructions, a jump reaches 255.
        let length = u8::try_from(section.len()).unwrap_or(u8::MAX);
        program.push(jump(JUMP_IF_EQUAL, architecture.audit, 0, length));
        program.extend(section);
    }
    program.push(plain(RETURN, ALLOW));
    program
}

/// What one architecture's calls go through; ends with a return.
fn section(architecture: &Architecture, thirty_two_bit: bool) -> Vec<Instruction> {
    let mut section = vec![
        plain(LOAD_WORD, NUMBER),
        plain(AND, !architecture.convention_bits),
    ];
    for &(number, rule) in architecture.rules {
        match rule {
            NoSetId(index) => section.extend([
                jump(JUMP_IF_EQUAL, number, 0, 4),
                plain(LOAD_WORD, argument(index)),
                jump(JUMP_IF_BITS, SET_ID_BITS, 0, 1),
                plain(RETURN, fail(libc::EPERM)),
                plain(RETURN, ALLOW),
            ]),
            NotThereIn64Bit if thirty_two_bit => {}
            NotSupported | NotThere | NotThereIn64Bit => {
                let error = match rule {
                    NotSupported => libc::ENOTSUP,
                    _ => libc::ENOSYS,
                };
                section.extend([jump(JUMP_IF_EQUAL, number, 0, 1), plain(RETURN, fail(error))]);
            }
            Families => {
                let count = FAMILIES.len() as u8;
                section.push(jump(JUMP_IF_EQUAL, number, 0, count + 3));
                section.push(plain(LOAD_WORD, argument(0)));
                let known = FAMILIES.iter().zip((1..=count).rev());
                section
                    .extend(known.map(|(family, left)| jump(JUMP_IF_EQUAL, family.cast_unsigned(), left, 0)));
                section.push(plain(RETURN, fail(libc::EAFNOSUPPORT)));
                section.push(plain(RETURN, ALLOW));
            }
        }
    }
    section.push(plain(RETURN, ALLOW));
    section
}

#[cfg(test)]
#[path = "system_calls_tests.rs"]
mod tests;
