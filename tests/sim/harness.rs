//! Runs tests as the standard harness would show them, each in a process of its own: a simulated world cannot be taken down.

use crate::real;
use std::ffi::CString;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::ffi::OsStringExt;
use std::time::Instant;

/// A test: its name, and what runs in the child. An error is what it says.
pub type Test = (&'static str, fn() -> Result<(), String>);

/// Exit code of the standard harness when a test failed.
const FAILED: i32 = 101;

/// Starts this program anew with addresses that are not randomised, unless they are fixed already: so locks, which are found
/// by their address, are found in the same places in every run. Where that is forbidden it goes on as it is.
pub fn same_addresses() {
    const ASK: libc::c_ulong = 0xffff_ffff;
    // SAFETY: asks for the flags, then sets one more, which counts from the next exec on.
    let set = unsafe {
        let now = libc::personality(ASK);
        now >= 0
            && now & libc::ADDR_NO_RANDOMIZE == 0
            && libc::personality((now | libc::ADDR_NO_RANDOMIZE) as libc::c_ulong) >= 0
            && libc::personality(ASK) & libc::ADDR_NO_RANDOMIZE != 0
    };
    if !set {
        return;
    }
    let args: Vec<CString> = std::env::args_os().filter_map(|a| CString::new(a.into_vec()).ok()).collect();
    let mut list: Vec<*const libc::c_char> = args.iter().map(|a| a.as_ptr()).collect();
    list.push(std::ptr::null());
    // SAFETY: C strings and a list of them that ends with null. When it fails, the program goes on.
    unsafe { libc::execv(c"/proc/self/exe".as_ptr(), list.as_ptr()) };
}

/// Their numbers, as they were when they were first asked for.
static ALL: std::sync::OnceLock<Vec<usize>> = std::sync::OnceLock::new();

/// How many processors this program has.
pub fn processors() -> usize {
    all_processors().len().max(1)
}

/// Keeps this process on one processor: the threads of a seed take turns, and handing over is quickest there.
pub fn pin(number: usize) {
    let all = all_processors();
    let Some(cpu) = all.get(number % all.len().max(1)) else { return };
    // SAFETY: plain data, of which all zero is a valid value; the set has the size that is said.
    unsafe {
        let mut one: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(*cpu, &mut one);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &one);
    }
}

/// The numbers of the processors that this program had when it began.
fn all_processors() -> &'static [usize] {
    ALL.get_or_init(|| {
        // SAFETY: as above.
        unsafe {
            let mut may: libc::cpu_set_t = std::mem::zeroed();
            if libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut may) != 0 {
                return Vec::new();
            }
            (0..libc::CPU_SETSIZE as usize).filter(|c| libc::CPU_ISSET(*c, &may)).collect()
        }
    })
}

/// Runs `f` in a child process; what it says, or how it died.
pub fn in_child(number: usize, f: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let mut ends = [0; 2];
    // SAFETY: a valid array of two; this process has one thread, so its child may do whatever it likes.
    let pid = unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0, "no pipe");
        libc::fork()
    };
    assert!(pid >= 0, "no process");
    if pid == 0 {
        pin(number);
        let said = f().err().unwrap_or_default();
        // SAFETY: ends this process, and no destructor runs: threads may be left over.
        unsafe {
            real::write(ends[1], said.as_bytes());
            libc::_exit(i32::from(!said.is_empty()))
        }
    }
    let mut said = Vec::new();
    let mut status = 0;
    // SAFETY: the ends were just made and belong to nobody else; the child is waited for once.
    unsafe {
        libc::close(ends[1]);
        let mut pipe = std::fs::File::from_raw_fd(ends[0]);
        let read = pipe.read_to_end(&mut said);
        libc::waitpid(pid, &mut status, 0);
        read.map_err(|e| e.to_string())?;
    }
    match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
        (true, 0) => Ok(()),
        (true, 1) => Err(String::from_utf8_lossy(&said).into_owned()),
        _ => Err(format!("its process ended with status {status:#x}; {}", String::from_utf8_lossy(&said))),
    }
}

/// Runs the tests that the arguments name; the exit code.
pub fn run(tests: &[Test]) -> i32 {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let exact = args.iter().any(|a| a == "--exact");
    let words: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let named = |name: &str| {
        words.is_empty() || words.iter().any(|w| if exact { *w == name } else { name.contains(w.as_str()) })
    };
    let chosen: Vec<&Test> = tests.iter().filter(|t| named(t.0)).collect();
    if args.iter().any(|a| a == "--list") {
        chosen.iter().for_each(|t| println!("{}: test", t.0));
        return 0;
    }
    let begun = Instant::now();
    all_processors();
    println!("\nrunning {} tests", chosen.len());
    let mut failures = Vec::new();
    for (i, (name, f)) in chosen.iter().enumerate() {
        let r = in_child(i, f);
        println!("test {name} ... {}", if r.is_ok() { "ok" } else { "FAILED" });
        failures.extend(r.err().map(|why| (name, why)));
    }
    for (name, why) in &failures {
        println!("\n---- {name} ----\n{why}");
    }
    println!(
        "\ntest result: {}. {} passed; {} failed; 0 ignored; 0 measured; {} filtered out; finished in {:.2}s\n",
        if failures.is_empty() { "ok" } else { "FAILED" },
        chosen.len() - failures.len(),
        failures.len(),
        tests.len() - chosen.len(),
        begun.elapsed().as_secs_f64()
    );
    if failures.is_empty() { 0 } else { FAILED }
}
