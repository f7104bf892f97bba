//! Simulated threads: they run only while they have the baton.

use super::baton::{self, Slot};
use super::{HOST, Key, ME, MachineId, Res, ThreadId, WITHIN, World, block, world};
use crate::mem;
use crate::real::real;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicU32, Ordering};

/// What a thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    Runs,
    Ready,
    Waits,
    Ended,
    Killed,
}

impl State {
    pub fn is_over(self) -> bool {
        matches!(self, State::Ended | State::Killed)
    }
}

/// A simulated thread.
pub struct Thread {
    pub slot: &'static Slot,
    pub machine: MachineId,
    pub name: String,
    pub state: State,
    /// What it waits for, in words and as keys, and the timer that ends it.
    pub why: &'static str,
    pub keys: Vec<Key>,
    pub timer: Option<(u64, u64)>,
    /// Whether the last wait was ended by a wake.
    pub woken: bool,
    /// The bits of a wait on a futex.
    pub bits: u32,
    /// Readings of a clock in a row.
    pub looks: u32,
    pub slow: bool,
    /// Shared with the other threads of the machine, unless it is the thread's own.
    pub umask: u32,
    pub own_umask: bool,
    /// Its stack: address and bytes.
    stack: (usize, usize),
}

pub type Start = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type Create = unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, Start, *mut c_void) -> c_int;
type Join = unsafe extern "C" fn(libc::pthread_t, *mut *mut c_void) -> c_int;

/// Bytes of the first thread's stack.
const FIRST_STACK: usize = 8 << 20;
/// The umask of a machine's first thread.
const UMASK: u32 = 0o022;

/// What a new thread is told.
struct Begin {
    slot: &'static Slot,
    id: ThreadId,
    start: Start,
    arg: *mut c_void,
}

/// The destructor of this key ends a thread: the C library calls it after Rust's own of thread-local values.
static KEY: AtomicU32 = AtomicU32::new(0);

extern "C" fn begin(told: *mut c_void) -> *mut c_void {
    let slot = {
        // SAFETY: made by whoever made this thread, for it alone; it is freed below, with the baton.
        let b = unsafe { &*told.cast::<Begin>() };
        b.slot
    };
    slot.begin();
    // SAFETY: as above; this is the one who frees it.
    let b = unsafe { Box::from_raw(told.cast::<Begin>()) };
    let (start, arg) = (b.start, b.arg);
    ME.set(1 + b.id);
    drop(b);
    // SAFETY: the key was made before the first thread; the value only has to be something.
    unsafe {
        libc::pthread_setspecific(KEY.load(Ordering::Relaxed), std::ptr::dangling::<u8>().cast());
        start(arg)
    }
}

/// Called by the C library when a thread ends: the first time it asks to be called again, after all other keys.
extern "C" fn end(_: *mut c_void) {
    thread_local!(static AGAIN: std::cell::Cell<bool> = const { std::cell::Cell::new(false) });
    if ME.get() == 0 {
        return;
    }
    if !AGAIN.replace(true) {
        // SAFETY: as in `begin`.
        unsafe { libc::pthread_setspecific(KEY.load(Ordering::Relaxed), std::ptr::dangling::<u8>().cast()) };
        return;
    }
    WITHIN.set(true);
    let w = world();
    let me = w.current;
    w.note("ends", me as u64);
    w.threads[me].state = State::Ended;
    w.wake(Key::Join(me), usize::MAX);
    mem::shrink(w.threads[me].stack);
    let (mine, next) = (w.threads[me].slot, w.next());
    let to = w.turn(next);
    ME.set(0);
    mine.end(to);
}

impl World {
    fn add_thread(&mut self, machine: MachineId, name: String) -> ThreadId {
        // A thread begins with the umask of the one that makes it.
        let umask = self.threads.get(self.current).filter(|t| t.machine == machine).map_or(UMASK, |t| t.umask);
        let slow = !self.threads.is_empty() && self.draw_slow();
        self.threads.push(Thread {
            slot: Slot::new(),
            machine,
            name,
            state: State::Ready,
            why: "",
            keys: Vec::new(),
            timer: None,
            woken: false,
            bits: 0,
            looks: 0,
            slow,
            umask,
            own_umask: false,
            stack: (0, 0),
        });
        self.threads.len() - 1
    }
}

/// Makes the real thread of a simulated one, on a stack of ours. Returns an error number.
///
/// # Safety
/// `native` is a place for the answer, `told` what [`begin`] expects.
unsafe fn make(w: &mut World, id: ThreadId, native: *mut libc::pthread_t, size: usize, told: *mut c_void) -> c_int {
    let stack = w.stacks.take(size);
    w.threads[id].stack = stack;
    let create = real!(c"pthread_create" as Create);
    let mut attr = MaybeUninit::uninit();
    // SAFETY: the attributes are made before they are used; the stack belongs to nobody else.
    unsafe {
        libc::pthread_attr_init(attr.as_mut_ptr());
        libc::pthread_attr_setstack(attr.as_mut_ptr(), stack.0 as *mut c_void, stack.1);
        create(native, attr.as_ptr(), begin, told)
    }
}

/// Makes the first simulated thread and gives it the baton.
pub fn first(w: &mut World, main: Box<dyn FnOnce() + Send>) {
    unsafe extern "C" fn run(main: *mut c_void) -> *mut c_void {
        // SAFETY: made below for this call alone.
        let main = unsafe { Box::from_raw(main.cast::<Box<dyn FnOnce() + Send>>()) };
        main();
        null_mut()
    }
    baton::prepare();
    let mut key = 0;
    // SAFETY: a valid place for the key; the destructor is a function of this program.
    assert_eq!(unsafe { libc::pthread_key_create(&mut key, Some(end)) }, 0, "no key for the ends of threads");
    KEY.store(key, Ordering::Relaxed);
    let id = w.add_thread(HOST, "main".into());
    w.threads[id].state = State::Runs;
    let slot = w.threads[id].slot;
    let arg = Box::into_raw(Box::new(main)).cast();
    let told = Box::into_raw(Box::new(Begin { slot, id, start: run, arg })).cast();
    let mut native = 0;
    // SAFETY: `begin` is given what it expects.
    let r = unsafe { make(w, id, &mut native, FIRST_STACK, told) };
    assert_eq!(r, 0, "no first thread");
    w.natives.insert(native, id);
    slot.first();
}

/// `pthread_create` of a simulated thread: the new one belongs to the same machine, or to that of [`super::spawn_on`].
/// Returns an error number, as that does.
///
/// # Safety
/// As for `pthread_create`.
pub unsafe fn create(
    native: *mut libc::pthread_t,
    attr: *const libc::pthread_attr_t,
    start: Start,
    arg: *mut c_void,
) -> c_int {
    let w = world();
    let mine = w.threads[w.current].machine;
    // What `spawn_on` says is meant for the thread that called it, and others may start threads before that one does.
    let meant = w.next_spawn.remove(&w.current);
    let (machine, name) = meant.unwrap_or((mine, "?".into()));
    let id = w.add_thread(machine, name);
    let told = Box::into_raw(Box::new(Begin { slot: w.threads[id].slot, id, start, arg })).cast();
    let mut size = 0;
    // SAFETY: as our caller promises; `begin` is given what it expects.
    let r = unsafe {
        if attr.is_null() || libc::pthread_attr_getstacksize(attr, &mut size) != 0 {
            size = FIRST_STACK;
        }
        make(w, id, native, size, told)
    };
    if r != 0 {
        w.threads[id].state = State::Ended;
        return r;
    }
    // SAFETY: filled by the successful call.
    w.natives.insert(unsafe { *native }, id);
    w.line_up(id);
    0
}

/// `pthread_join`.
///
/// # Safety
/// As for `pthread_join`.
pub unsafe fn join_native(native: libc::pthread_t, result: *mut *mut c_void) -> c_int {
    let id = world().natives.get(&native).copied();
    if let Some(id) = id {
        join(id);
    }
    let join = real!(c"pthread_join" as Join);
    // SAFETY: as our caller promises. The thread has ended but for its last instructions.
    let r = unsafe { join(native, result) };
    if let Some(id) = id.filter(|_| r == 0) {
        let w = world();
        w.stacks.give_back(w.threads[id].stack);
    }
    r
}

/// Waits until a thread has ended or was killed.
pub fn join(id: ThreadId) {
    while !world().threads[id].state.is_over() {
        block(&[Key::Join(id)], None, "joins a thread");
    }
}

/// umask(2): of the current thread, and of all of its machine that share it.
pub fn umask(mask: u32) -> u32 {
    let w = world();
    let (me, machine) = (w.current, w.threads[w.current].machine);
    let before = w.threads[me].umask;
    if w.threads[me].own_umask {
        w.threads[me].umask = mask & 0o777;
    } else {
        let all = w.threads.iter_mut().filter(|t| t.machine == machine && !t.own_umask);
        all.for_each(|t| t.umask = mask & 0o777);
    }
    before
}

/// unshare(2) with CLONE_FS.
pub fn own_umask() {
    let w = world();
    w.threads[w.current].own_umask = true;
}

/// Gives the thread of a `pthread_t` its name.
pub fn name(native: libc::pthread_t, name: &[u8]) -> Res<i64> {
    let w = world();
    if let Some(t) = w.natives.get(&native).and_then(|id| w.threads.get_mut(*id)) {
        t.name = String::from_utf8_lossy(name).into_owned();
    }
    Ok(0)
}
