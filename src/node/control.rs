//! The control socket: how `kagami status` and its friends talk to the node.
//!
//! ```text
//! client → {"command":"mount","group":"lab","volume":null,"dir":"/srv/lab"}\n
//! node   → {"progress":{…}}\n                          any number of times
//! node   → {"ok":VALUE}\n  or  {"error":{"kind":"refused","errno":1,"msg":"…"}}\n
//! ```
//!
//! One request for each connection. The socket is `state_dir/control.sock`, mode 0600: who may open it may do everything.
//! It is bound and opened through `/proc/self/fd/N/`, so that the length of `state_dir` does not matter.

use super::mounter::MountOptions;
use crate::base::{At, Error, Kind, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Name of the socket in the state directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Longest request, bytes.
pub const REQUEST_BYTES_MAX: u64 = 64 << 10;
/// Longest line of an answer, bytes.
pub const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Most commands at a time.
pub const CONNECTIONS_MAX: usize = 64;
/// A client must send its request within this time.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A client that does not read its answers is given up after this time.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a killed process may hold its socket, while the kernel ends its threads.
const DYING: Duration = Duration::from_secs(10);

/// What a node can be asked to do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// [`super::status::Status`] of this node.
    Status {},
    /// Mount a volume (`None`: the lead volume) at `dir`.
    Mount {
        group: String,
        volume: Option<String>,
        #[serde(with = "path_text")]
        dir: PathBuf,
        #[serde(default)]
        options: MountOptions,
    },
    /// Unmount a volume (`None`: all volumes of the group).
    Umount { group: String, volume: Option<String> },
    /// Start a pair: initial copy, or none if the operator says that both sides are equal already, which is then looked
    /// at first; `no_verify`: without reading the content.
    PairCreate {
        group: String,
        pair: String,
        no_copy: bool,
        #[serde(default)]
        no_verify: bool,
    },
    /// Suspend a pair (PSUS).
    PairSplit { group: String, pair: String },
    /// Resume a suspended pair. `in_place`: without staging when there is no space for it.
    /// `keep`: after a split brain, the site whose version is kept.
    PairResync { group: String, pair: String, in_place: bool, keep: Option<String> },
    /// End a pair (SMPL).
    PairDelete { group: String, pair: String },
    /// The ends of a pair in PAIR change their roles; nothing is lost (MS-22).
    PairSwap { group: String, pair: String },
    /// Take the volume over here. `at`: where to mount the lead volume; `None`: as in the site file.
    Takeover {
        group: String,
        force: bool,
        dry_run: bool,
        at: Option<String>,
        /// The primary gives its role away in order; nothing is lost.
        #[serde(default)]
        handover: bool,
        /// Nothing is mounted here before that is ordered ([`Request::EndRest`]).
        #[serde(default)]
        bare: bool,
    },
    /// How the group stands here and at the other sites: an array of [`super::status::SiteView`], this one first.
    Observe { group: String },
    /// Whoever carries a procedure out says how far it is; `over`: it ends.
    Proceed { group: String, procedure: super::status::ProcedureStatus, over: bool },
    /// Have the primary end its mounts and lead on without; `force`: also while one is in use.
    Rest { group: String, force: bool },
    /// Mount here what the site file says (or the lead volume at `at`) after a role that came without mounts.
    EndRest { group: String, at: Option<String> },
    /// Have another site lead without mounts, bring this one to what it has, and give it the role (MS-13).
    BringFrom { group: String, site: String },
    /// Compare replicas (`None`: of every pair); `repair`: make the secondary equal.
    Verify { group: String, pair: Option<String>, repair: bool },
    /// What the change journal holds, in numbers.
    JournalStat { group: String },
    /// Its records, the newest `limit` of them.
    JournalShow { group: String, limit: u64 },
    /// The events of losing versions (`None`: of every group).
    LossList { group: Option<String> },
    /// An event by the first digits of its id, with its objects.
    LossShow { event: String },
    /// Drop an event (`None`: all of them) with what it keeps.
    LossDrop { event: Option<String> },
    /// Where a file of a mounted volume stands at each site.
    Why {
        #[serde(with = "path_text")]
        path: PathBuf,
    },
    /// Drop the link to a peer and do not make it again.
    PeerPause { site: String },
    /// Undo [`Request::PeerPause`].
    PeerResume { site: String },
    /// Test bed: drop the links to all peers and refuse new ones.
    LinkCut {},
    /// Undo [`Request::LinkCut`].
    LinkJoin {},
    /// Add a leg: one region for each volume, in their order.
    LegAdd { group: String, regions: Vec<String> },
    /// Remove a leg by its number.
    LegRemove { group: String, leg: u32 },
    /// What a group would mount and start here (CD-6 to CD-8), and why it does not. `now`: do it (CD-17).
    Boot { group: String, now: bool, dry_run: bool },
    /// An order to an application of a group (`None`: to all).
    App { group: String, app: Option<String>, order: AppOrder },
    /// Unmount, flush and end.
    Stop {},
}

/// What an application can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AppOrder {
    /// Start.
    Start,
    /// Stop, and stay so.
    Stop,
    /// Stop and start.
    Restart,
}

/// A path in JSON: text, or an array of bytes when it is not UTF-8.
pub(crate) mod path_text {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::ffi::OsString;
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    use std::path::{Path, PathBuf};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Text {
        Utf8(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(p: &Path, s: S) -> Result<S::Ok, S::Error> {
        match p.to_str() {
            Some(t) => s.serialize_str(t),
            None => s.collect_seq(p.as_os_str().as_bytes()),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<PathBuf, D::Error> {
        Ok(match Text::deserialize(d)? {
            Text::Utf8(t) => PathBuf::from(t),
            Text::Bytes(b) => PathBuf::from(OsString::from_vec(b)),
        })
    }
}

/// Who answers the requests: the node.
pub trait Commands: Send + Sync {
    /// Carries out one request. `progress` may be called with any JSON value, any number of times; it does not fail and
    /// does not block for longer than a slow client is tolerated.
    fn run(&self, req: Request, progress: &dyn Fn(Value)) -> Result<Value>;
}

/// A running control socket; it ends when this is dropped.
pub struct ServerHandle {
    dir: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    ino: u64,
}

/// An address of a socket in `dir` that is short however long `dir` is. The file keeps the descriptor open.
fn short(dir: &Path, name: &str) -> Result<(std::fs::File, PathBuf)> {
    let d = std::fs::File::open(dir).at(dir.display())?;
    let p = PathBuf::from(format!("/proc/self/fd/{}/{name}", d.as_raw_fd()));
    Ok((d, p))
}

fn inode(path: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|m| m.ino())
}

/// Serves requests on `state_dir/control.sock` (the directory must exist). Refuses when another node answers there.
pub fn serve(state_dir: &Path, commands: Arc<dyn Commands>) -> Result<ServerHandle> {
    let socket = state_dir.join(SOCKET_NAME);
    if connect(state_dir).is_ok() {
        return Err(Error::refused(format!(
            "another node already answers at {}; end it first, or give this one its own state_dir",
            socket.display()
        )));
    }
    // Bound under another name, so that the socket never exists with a mode other than 0600.
    let temp = format!(".{SOCKET_NAME}.{}", std::process::id());
    let (_dir, short_temp) = short(state_dir, &temp)?;
    let temp = state_dir.join(temp);
    let _ = std::fs::remove_file(&temp);
    let bind = || -> std::io::Result<UnixListener> {
        let l = UnixListener::bind(&short_temp)?;
        std::fs::set_permissions(&temp, std::fs::Permissions::from_mode(0o600))?;
        std::fs::rename(&temp, &socket)?;
        Ok(l)
    };
    let listener = bind().at(format!("control socket {}", socket.display()))?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    let thread =
        std::thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &flag, &commands))?;
    Ok(ServerHandle { dir: state_dir.to_owned(), stop, thread: Some(thread), ino: inode(&socket).unwrap_or(0) })
}

impl Drop for ServerHandle {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Accept waits for a connection: give it one. If somebody removed the socket, the thread is left behind.
        let woken = connect(&self.dir).is_ok();
        let socket = self.dir.join(SOCKET_NAME);
        if inode(&socket) == Some(self.ino) {
            let _ = std::fs::remove_file(&socket);
        }
        if let (true, Some(t)) = (woken, self.thread.take()) {
            let _ = t.join();
        }
    }
}

fn accept(listener: &UnixListener, stop: &AtomicBool, commands: &Arc<dyn Commands>) {
    let open = Arc::new(AtomicUsize::new(0));
    loop {
        let conn = listener.accept();
        if stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok((conn, _)) = conn else {
            // Out of descriptors, most likely: give the others time to close theirs.
            std::thread::sleep(Duration::from_millis(50));
            continue;
        };
        let _ = conn.set_write_timeout(Some(WRITE_TIMEOUT));
        let count = Count::one_more(&open);
        if open.load(Ordering::SeqCst) > CONNECTIONS_MAX {
            let busy =
                Error::failed(format!("the node is busy with {CONNECTIONS_MAX} other commands; try again later"));
            let _ = send(&conn, &answer(Err(busy)));
            continue;
        }
        let commands = commands.clone();
        let started = std::thread::Builder::new().name("command".into()).spawn(move || {
            let _count = count;
            if let Err(e) = serve_one(&conn, &*commands) {
                log::debug!("control connection: {e}");
            }
        });
        if let Err(e) = started {
            log::warn!("no thread for a command: {e}");
        }
    }
}

/// Counts open connections.
struct Count(Arc<AtomicUsize>);

impl Count {
    fn one_more(n: &Arc<AtomicUsize>) -> Count {
        n.fetch_add(1, Ordering::SeqCst);
        Count(n.clone())
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Reads up to a point in time, however slowly the client trickles.
struct Until<'a> {
    conn: &'a UnixStream,
    deadline: Instant,
}

impl Read for Until<'_> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(std::io::ErrorKind::TimedOut.into());
        }
        self.conn.set_read_timeout(Some(left))?;
        (&mut &*self.conn).read(buf)
    }
}

fn serve_one(conn: &UnixStream, commands: &dyn Commands) -> Result<()> {
    let mut line = Vec::new();
    let whole = Until { conn, deadline: Instant::now() + REQUEST_TIMEOUT };
    BufReader::new(whole.take(REQUEST_BYTES_MAX + 1)).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(());
    }
    let req = if line.len() as u64 > REQUEST_BYTES_MAX {
        Err(Error::config(format!("request longer than {REQUEST_BYTES_MAX} bytes")))
    } else {
        serde_json::from_slice::<Request>(&line).map_err(|e| Error::config(format!("not a request: {e}")))
    };
    let result = match req {
        Ok(req) => {
            log::debug!("command {req:?}");
            // A client that went away does not end what it began; only the answers are lost.
            commands.run(req, &|v| drop(send(conn, &json!({ "progress": v }))))
        }
        Err(e) => Err(e),
    };
    send(conn, &answer(result))
}

fn answer(result: Result<Value>) -> Value {
    match result {
        Ok(v) => json!({ "ok": v }),
        Err(e) => json!({ "error": { "kind": kind_name(e.kind), "errno": e.errno, "msg": e.msg } }),
    }
}

fn send(mut conn: &UnixStream, v: &Value) -> Result<()> {
    let mut line = v.to_string();
    line.push('\n');
    conn.write_all(line.as_bytes())?;
    Ok(())
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Failed, "failed"),
    (Kind::Config, "config"),
    (Kind::Timeout, "timeout"),
    (Kind::Refused, "refused"),
    (Kind::Degraded, "degraded"),
    (Kind::Corrupt, "corrupt"),
    (Kind::Link, "link"),
];

/// The name of a kind of error, as in JSON.
pub fn kind_name(kind: Kind) -> &'static str {
    KINDS.iter().find(|(k, _)| *k == kind).map_or("failed", |(_, n)| n)
}

fn connect(state_dir: &Path) -> Result<UnixStream> {
    let (_dir, path) = short(state_dir, SOCKET_NAME)?;
    Ok(UnixStream::connect(path)?)
}

/// True when a node answers at this state directory.
pub fn is_running(state_dir: &Path) -> bool {
    connect(state_dir).is_ok()
}

/// Waits until no node is at this state directory, if the one there is about to end: a killed process has its socket for
/// a moment still. False when it is there to stay.
pub fn has_ended(state_dir: &Path) -> bool {
    let until = Instant::now() + DYING;
    while is_running(state_dir) {
        match call_within(state_dir, &Request::Status {}, Some(DYING), |_| ()) {
            Err(e) if e.kind == Kind::Link && Instant::now() < until => std::thread::sleep(DYING / 100),
            _ => return !is_running(state_dir),
        }
    }
    true
}

/// Sends a request to the node of `state_dir` and waits for its answer, however long it takes.
///
/// The error is the node's own; [`Kind::Failed`] with what to do when none runs; [`Kind::Link`] when it ended before it
/// answered.
pub fn call(state_dir: &Path, req: &Request, on_progress: impl FnMut(Value)) -> Result<Value> {
    call_within(state_dir, req, None, on_progress)
}

/// As [`call`], but [`Kind::Timeout`] when the node is silent for longer than `silence`.
pub fn call_within(
    state_dir: &Path,
    req: &Request,
    silence: Option<Duration>,
    mut on_progress: impl FnMut(Value),
) -> Result<Value> {
    let conn = connect(state_dir).map_err(|e| not_running(state_dir, &e))?;
    conn.set_read_timeout(silence)?;
    let lost = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::WouldBlock => {
            let s = silence.unwrap_or_default().as_secs();
            Error::new(Kind::Timeout, format!("the node in {} did not answer within {s} s", state_dir.display()))
        }
        _ => Error::link(format!("the node ended before it answered ({e}); its log says why")),
    };
    let line = serde_json::to_string(req).map_err(|e| Error::failed(format!("request: {e}")))?;
    (&conn).write_all(format!("{line}\n").as_bytes()).map_err(lost)?;
    let mut answers = BufReader::new(&conn);
    loop {
        let mut line = Vec::new();
        answers.by_ref().take(ANSWER_BYTES_MAX).read_until(b'\n', &mut line).map_err(lost)?;
        if line.last() != Some(&b'\n') {
            return Err(match line.len() as u64 {
                ANSWER_BYTES_MAX => Error::link(format!("the node's answer is longer than {ANSWER_BYTES_MAX} bytes")),
                _ => Error::link("the node ended before it answered; its log says why"),
            });
        }
        match read_answer(&line)? {
            Answer::Progress(p) => on_progress(p),
            Answer::End(r) => return r,
        }
    }
}

enum Answer {
    Progress(Value),
    End(Result<Value>),
}

fn read_answer(line: &[u8]) -> Result<Answer> {
    let strange = |what| Error::link(format!("the node's answer is not understood ({what}); is it another version?"));
    let Ok(Value::Object(mut o)) = serde_json::from_slice::<Value>(line) else {
        return Err(strange("no JSON object"));
    };
    if let Some(p) = o.remove("progress") {
        Ok(Answer::Progress(p))
    } else if let Some(v) = o.remove("ok") {
        Ok(Answer::End(Ok(v)))
    } else if let Some(e) = o.remove("error") {
        Ok(Answer::End(Err(remote_error(&e))))
    } else {
        Err(strange("neither ok nor error"))
    }
}

fn remote_error(e: &Value) -> Error {
    let name = e.get("kind").and_then(Value::as_str).unwrap_or("failed");
    let kind = KINDS.iter().find(|(_, n)| *n == name).map_or(Kind::Failed, |(k, _)| *k);
    let mut out = Error::new(kind, e.get("msg").and_then(Value::as_str).unwrap_or("failed without a reason"));
    if let Some(n) = e.get("errno").and_then(Value::as_i64).and_then(|n| i32::try_from(n).ok()) {
        out.errno = n;
    }
    out
}

fn not_running(state_dir: &Path, e: &Error) -> Error {
    if e.errno == libc::EACCES || e.errno == libc::EPERM {
        let mut out = Error::failed(format!(
            "no permission for the control socket in {}: run this as the user that runs the node",
            state_dir.display()
        ));
        out.errno = e.errno;
        return out;
    }
    let mut out = Error::failed(format!(
        "no node answers in {} ({}): start it with `kagami --config FILE node -d`",
        state_dir.display(),
        e.msg
    ));
    out.errno = e.errno;
    out
}

/// True for the error of [`call`] that says that no node runs there.
pub fn is_not_running(e: &Error) -> bool {
    e.kind == Kind::Failed && matches!(e.errno, libc::ENOENT | libc::ECONNREFUSED)
}
