//! A builder that needs nothing: one static program, no libc, no shell, made by `rustc` alone.
//!
//! Its only argument is a script, one command a line; `$name` is replaced by the environment's
//! value. `echo TEXT`, `mkdir PATH`, `write PATH TEXT`, `named PATH NAME TEXT` (writes a file of a folder; its name is
//! given as hexadecimal numbers), `executable PATH`, `copy FROM TO`,
//! `cat PATH`, `link TARGET PATH`, `env` (prints the environment), `wait` (until SIGUSR1 comes),
//! `sleep SECONDS`, `spawn COUNT` (processes that sleep, as far as it gets them), `forget` (closes the descriptors that it inherited), `fail CODE`. A command that fails ends the program with status 1 and says so.
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call main_");
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x0, sp", "bl main_");

#[cfg(target_arch = "x86_64")]
mod number {
    pub const WRITE: usize = 1;
    pub const READ: usize = 0;
    pub const CLOSE: usize = 3;
    pub const OPENAT: usize = 257;
    pub const MKDIRAT: usize = 258;
    pub const SYMLINKAT: usize = 266;
    pub const FCHMODAT: usize = 268;
    pub const NANOSLEEP: usize = 35;
    pub const SIGPROCMASK: usize = 14;
    pub const CLONE: usize = 56;
    pub const SIGTIMEDWAIT: usize = 128;
    pub const EXIT_GROUP: usize = 231;
}
#[cfg(target_arch = "aarch64")]
mod number {
    pub const WRITE: usize = 64;
    pub const READ: usize = 63;
    pub const CLOSE: usize = 57;
    pub const OPENAT: usize = 56;
    pub const MKDIRAT: usize = 34;
    pub const SYMLINKAT: usize = 36;
    pub const FCHMODAT: usize = 53;
    pub const NANOSLEEP: usize = 101;
    pub const SIGPROCMASK: usize = 135;
    pub const CLONE: usize = 220;
    pub const SIGTIMEDWAIT: usize = 137;
    pub const EXIT_GROUP: usize = 94;
}

const AT_FDCWD: usize = -100isize as usize;
const CREATE: usize = 0o1 | 0o100 | 0o1000; // O_WRONLY | O_CREAT | O_TRUNC

fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result: isize;
    // SAFETY: the kernel reads and writes only what the arguments point to, which outlives the call.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, lateout("rcx") _, lateout("r11") _);
        #[cfg(target_arch = "aarch64")]
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d);
    }
    result
}

fn exit(code: usize) -> ! {
    loop {
        call(number::EXIT_GROUP, code, 0, 0, 0);
    }
}

fn put(descriptor: usize, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let written = call(number::WRITE, descriptor, bytes.as_ptr() as usize, bytes.len(), 0);
        if written <= 0 {
            exit(1);
        }
        bytes = &bytes[written as usize..];
    }
}

fn check(result: isize, command: &[u8]) -> usize {
    if result < 0 {
        put(2, b"tool: this failed: ");
        put(2, command);
        put(2, b"\n");
        exit(1);
    }
    result as usize
}

/// A word with its variables replaced, ending in NUL, in a buffer of its own.
struct Word {
    bytes: [u8; 4096],
    length: usize,
}

impl Word {
    fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if self.length + 1 < self.bytes.len() {
                self.bytes[self.length] = byte;
                self.length += 1;
            }
        }
    }
    fn address(&self) -> usize {
        self.bytes.as_ptr() as usize
    }
    fn text(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

struct Environment(*const *const u8);

fn string<'a>(pointer: *const u8) -> &'a [u8] {
    let mut length = 0;
    // SAFETY: the kernel ends every argument and variable with a NUL.
    unsafe {
        while *pointer.add(length) != 0 {
            length += 1;
        }
        core::slice::from_raw_parts(pointer, length)
    }
}

impl Environment {
    fn each(&self, mut visit: impl FnMut(&'static [u8])) {
        let mut entry = self.0;
        // SAFETY: the kernel ends the list of variables with a null pointer.
        unsafe {
            while !(*entry).is_null() {
                visit(string(*entry));
                entry = entry.add(1);
            }
        }
    }

    fn get(&self, name: &[u8]) -> &'static [u8] {
        let mut found: &'static [u8] = b"";
        self.each(|entry| {
            if entry.len() > name.len() && entry.starts_with(name) && entry[name.len()] == b'=' {
                found = &entry[name.len() + 1..];
            }
        });
        found
    }

    fn expand(&self, text: &[u8]) -> Word {
        let mut word = Word { bytes: [0; 4096], length: 0 };
        let mut at = 0;
        while at < text.len() {
            if text[at] == b'$' {
                let mut end = at + 1;
                while end < text.len() && (text[end].is_ascii_alphanumeric() || text[end] == b'_') {
                    end += 1;
                }
                word.push(self.get(&text[at + 1..end]));
                at = end;
            } else {
                word.push(&text[at..at + 1]);
                at += 1;
            }
        }
        word
    }
}

fn split(text: &[u8]) -> (&[u8], &[u8]) {
    match text.iter().position(|&byte| byte == b' ') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, b""),
    }
}

fn number_of(text: &[u8]) -> usize {
    text.iter().fold(0, |sum, digit| sum * 10 + usize::from(digit.wrapping_sub(b'0')))
}

fn pour(from: usize, to: usize, line: &[u8]) {
    let mut buffer = [0u8; 4096];
    loop {
        let got = check(call(number::READ, from, buffer.as_mut_ptr() as usize, buffer.len(), 0), line);
        if got == 0 {
            return;
        }
        put(to, &buffer[..got]);
    }
}

fn run(environment: &Environment, line: &[u8]) {
    let (command, rest) = split(line);
    let open = |path: &Word, flags| check(call(number::OPENAT, AT_FDCWD, path.address(), flags, 0o644), line);
    match command {
        b"" => {}
        b"echo" => {
            let text = environment.expand(rest);
            put(1, text.text());
            put(1, b"\n");
        }
        b"env" => environment.each(|entry| {
            put(1, entry);
            put(1, b"\n");
        }),
        b"mkdir" => {
            let path = environment.expand(rest);
            check(call(number::MKDIRAT, AT_FDCWD, path.address(), 0o755, 0), line);
        }
        b"write" => {
            let (path, text) = split(rest);
            let (path, text) = (environment.expand(path), environment.expand(text));
            let file = open(&path, CREATE);
            put(file, text.text());
            put(file, b"\n");
            call(number::CLOSE, file, 0, 0, 0);
        }
        b"named" => {
            let (path, rest) = split(rest);
            let (name, text) = split(rest);
            let mut path = environment.expand(path);
            path.push(b"/");
            let digit = |digit: u8| (digit as char).to_digit(16).unwrap_or(0) as u8;
            for pair in name.chunks_exact(2) {
                path.push(&[digit(pair[0]) << 4 | digit(pair[1])]);
            }
            let file = open(&path, CREATE);
            put(file, environment.expand(text).text());
            call(number::CLOSE, file, 0, 0, 0);
        }
        b"executable" => {
            let path = environment.expand(rest);
            check(call(number::FCHMODAT, AT_FDCWD, path.address(), 0o755, 0), line);
        }
        b"copy" => {
            let (from, to) = split(rest);
            let (from, to) = (open(&environment.expand(from), 0), open(&environment.expand(to), CREATE));
            pour(from, to, line);
            call(number::CLOSE, from, 0, 0, 0);
            call(number::CLOSE, to, 0, 0, 0);
        }
        b"cat" => {
            let from = open(&environment.expand(rest), 0);
            pour(from, 1, line);
            call(number::CLOSE, from, 0, 0, 0);
        }
        b"link" => {
            let (target, path) = split(rest);
            let (target, path) = (environment.expand(target), environment.expand(path));
            check(call(number::SYMLINKAT, target.address(), AT_FDCWD, path.address(), 0), line);
        }
        b"wait" => {
            // Blocked signals are kept even for the first process of a namespace.
            let user_signal: u64 = 1 << (10 - 1);
            let set = &raw const user_signal as usize;
            check(call(number::SIGPROCMASK, 0, set, 0, 8), line);
            put(1, b"waiting\n");
            check(call(number::SIGTIMEDWAIT, set, 0, 0, 8), line);
        }
        b"sleep" => {
            let time = [number_of(rest), 0];
            call(number::NANOSLEEP, time.as_ptr() as usize, 0, 0, 0);
        }
        b"spawn" => {
            for _ in 0..number_of(rest) {
                const SIGCHLD: usize = 17;
                if call(number::CLONE, SIGCHLD, 0, 0, 0) == 0 {
                    let long = [1usize << 30, 0];
                    call(number::NANOSLEEP, long.as_ptr() as usize, 0, 0, 0);
                    exit(0);
                }
            }
        }
        b"forget" => {
            for inherited in 3..1024 {
                call(number::CLOSE, inherited, 0, 0, 0);
            }
        }
        b"fail" => exit(number_of(rest)),
        _ => {
            check(-1, line);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn main_(stack: *const usize) -> ! {
    // SAFETY: at the start of a program the stack holds the number of arguments, the arguments, a
    // null pointer, and the variables.
    let (count, arguments) = unsafe { (*stack, stack.add(1) as *const *const u8) };
    let environment = Environment(unsafe { arguments.add(count + 1) });
    if count < 2 {
        put(2, b"tool: the argument is a script\n");
        exit(2);
    }
    let mut script = string(unsafe { *arguments.add(count - 1) });
    while !script.is_empty() {
        let end = script.iter().position(|&byte| byte == b'\n').unwrap_or(script.len());
        let line = &script[..end];
        let start = line.iter().position(|&byte| byte != b' ').unwrap_or(line.len());
        run(&environment, &line[start..]);
        script = script.get(end + 1..).unwrap_or(b"");
    }
    exit(0)
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    put(2, b"tool: a bug\n");
    exit(70)
}

// Without a libc the compiler still emits calls to these.
#[unsafe(no_mangle)]
unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, count: usize) -> *mut u8 {
    for at in 0..count {
        // Volatile, or the compiler turns this loop into a call to itself.
        unsafe { to.add(at).write_volatile(*from.add(at)) };
    }
    to
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(to: *mut u8, value: i32, count: usize) -> *mut u8 {
    for at in 0..count {
        unsafe { to.add(at).write_volatile(value as u8) };
    }
    to
}
#[unsafe(no_mangle)]
unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    for at in 0..count {
        let (a, b) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
        if a != b {
            return i32::from(a) - i32::from(b);
        }
    }
    0
}
#[unsafe(no_mangle)]
unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, count: usize) -> i32 {
    unsafe { memcmp(a, b, count) }
}
#[unsafe(no_mangle)]
unsafe extern "C" fn strlen(text: *const u8) -> usize {
    let mut length = 0;
    while unsafe { text.add(length).read_volatile() } != 0 {
        length += 1;
    }
    length
}
/// Named by the precompiled core library; nothing here unwinds.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
