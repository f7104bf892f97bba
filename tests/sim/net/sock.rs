//! Sockets: what a descriptor refers to before, while and after it is an end of a connection.

use super::{BACKLOG, EndId, Key, Listener, ListenerKey, MachineId, Net, What};
use crate::sched::Res;
use std::collections::VecDeque;

/// The number of a socket.
pub type SockId = usize;

/// What a socket is.
#[derive(Clone, Debug)]
pub enum Role {
    New,
    Bound(ListenerKey),
    Listens(ListenerKey),
    Connected(EndId),
}

/// A socket.
#[derive(Clone, Debug)]
pub struct Socket {
    pub machine: MachineId,
    pub role: Role,
    pub nonblocking: bool,
    /// How long a receive (accept) and a send (connect) wait, ns; 0: for ever.
    pub receive_ns: u64,
    pub send_ns: u64,
    /// The path that it was bound to.
    pub path: Vec<u8>,
}

impl Net {
    pub fn add(&mut self, machine: MachineId, role: Role, nonblocking: bool) -> SockId {
        let id = self.next_sock;
        self.next_sock += 1;
        let s = Socket { machine, role, nonblocking, receive_ns: 0, send_ns: 0, path: Vec::new() };
        self.socks.insert(id, s);
        id
    }

    /// The two sockets of a new connection within a machine.
    pub fn add_pair(&mut self, m: MachineId, nonblocking: bool) -> (SockId, SockId) {
        let (a, b) = self.connect_ends(m, m);
        (self.add(m, Role::Connected(a), nonblocking), self.add(m, Role::Connected(b), nonblocking))
    }

    pub fn sock(&mut self, s: SockId) -> Res<&mut Socket> {
        self.socks.get_mut(&s).ok_or(libc::EBADF)
    }

    pub fn is_nonblocking(&self, s: SockId) -> bool {
        self.socks.get(&s).is_some_and(|s| s.nonblocking)
    }

    pub fn set_nonblocking(&mut self, s: SockId, on: bool) {
        if let Some(s) = self.socks.get_mut(&s) {
            s.nonblocking = on;
        }
    }

    /// The socket begins to listen at its file.
    pub fn listen(&mut self, s: SockId) -> Res<()> {
        let sock = self.sock(s)?;
        match sock.role {
            Role::Bound(key) => {
                sock.role = Role::Listens(key);
                self.listeners.insert(key, Listener { sock: s, queue: VecDeque::new(), shut: false });
                Ok(())
            }
            Role::Listens(_) => Ok(()),
            _ => Err(libc::EINVAL),
        }
    }

    /// True when a listener is there and takes connections.
    pub fn is_listening(&self, key: ListenerKey) -> bool {
        self.listeners.get(&key).is_some_and(|l| !l.shut)
    }

    /// And has room for one more.
    pub fn has_room(&self, key: ListenerKey) -> bool {
        self.listeners.get(&key).is_some_and(|l| !l.shut && l.queue.len() < BACKLOG)
    }

    /// A connection arrives at a listener.
    pub fn enqueue(&mut self, key: ListenerKey, end: EndId) {
        if let Some(l) = self.listeners.get_mut(&key) {
            l.queue.push_back(end);
            self.out.wake.push(Key::Accept(l.sock));
        }
    }

    /// The last descriptor of a socket is closed. Its process may have been killed: then the policies of its lines say
    /// whether the other end hears of it.
    pub fn close(&mut self, s: SockId) {
        let Some(sock) = self.socks.remove(&s) else { return };
        match sock.role {
            Role::Connected(end) => self.close_or_vanish(end),
            Role::Listens(key) => {
                let waiting = self.listeners.remove(&key).map(|l| l.queue).unwrap_or_default();
                waiting.into_iter().for_each(|end| self.close_or_vanish(end));
                self.out.wake.push(Key::Backlog(s));
            }
            Role::New | Role::Bound(_) => {}
        }
    }

    fn close_or_vanish(&mut self, end: EndId) {
        let machine = |id: EndId| self.ends.get(&id).map(|e| e.machine);
        if let (Some(a), Some(b)) = (machine(end), machine(Self::peer(end)))
            && a != b
            && self.dying == Some(a)
            && self.line(a, b).half_open
        {
            self.vanish(end);
            if let Some(e) = self.ends.get_mut(&end) {
                e.closed = true;
            }
            return;
        }
        self.close_end(end);
    }

    /// shutdown(2).
    pub fn shutdown(&mut self, s: SockId, how: i32) -> Res<()> {
        match self.sock(s)?.role {
            Role::Listens(key) => {
                if let Some(l) = self.listeners.get_mut(&key) {
                    l.shut = true;
                    self.out.wake.extend([Key::Accept(s), Key::Backlog(s)]);
                }
                Ok(())
            }
            Role::Connected(id) => {
                self.shutdown_end(id, how);
                Ok(())
            }
            _ => Err(libc::ENOTCONN),
        }
    }

    fn shutdown_end(&mut self, id: EndId, how: i32) {
        let Some(e) = self.ends.get_mut(&id) else { return };
        let (read, write) = (how != libc::SHUT_WR, how != libc::SHUT_RD);
        let told = (e.shut_read, e.shut_write);
        e.shut_read |= read;
        e.shut_write |= write;
        let news = (e.shut_read, e.shut_write) != told;
        self.out.wake.extend([Key::Readable(id), Key::Writable(id)]);
        if news && read && write {
            self.put(id, What::Gone { reset: false });
        } else if news && write {
            self.put(id, What::End);
        }
    }
}
