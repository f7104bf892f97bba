//! The door of a node: who has connected and has not said yet who he is. They are few at any time (G10).
//!
//! A newcomer pushes out whoever has stood there longest: so connections that stay silent, however many, take nothing from a
//! peer that greets at once, and those that were pushed out end by themselves.

use crate::base::limits;
use crate::base::sync::Mutex;
use crate::net::Closer;
use std::collections::VecDeque;
use std::sync::Arc;

/// The door.
#[derive(Default)]
pub struct Door {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    next: u64,
    /// Those that may still say who they are, the longest waiting one first.
    waiting: VecDeque<(u64, Closer)>,
    /// Also those that were pushed out and have not gone yet.
    inside: usize,
}

/// One that stands there; gone when this is dropped.
pub struct Stranger {
    door: Arc<Door>,
    number: u64,
}

impl Door {
    /// Lets one stand there, and pushes another one out for it. `None` while those that were pushed out have not gone.
    pub fn enter(self: &Arc<Self>, closer: Closer) -> Option<Stranger> {
        let mut g = self.inner.lock();
        if g.inside >= 2 * limits::STRANGERS_MAX {
            return None;
        }
        let pushed = if g.waiting.len() >= limits::STRANGERS_MAX { g.waiting.pop_front() } else { None };
        let number = g.next;
        g.next += 1;
        g.inside += 1;
        g.waiting.push_back((number, closer));
        drop(g);
        if let Some((_, oldest)) = pushed {
            oldest.close();
        }
        Some(Stranger { door: self.clone(), number })
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut g = self.door.inner.lock();
        g.inside -= 1;
        g.waiting.retain(|(n, _)| *n != self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Kind;
    use crate::net::Link;

    #[test]
    fn g10_a_newcomer_pushes_out_the_one_that_waits_longest() {
        let door = Arc::new(Door::default());
        let links: Vec<_> = (0..3 * limits::STRANGERS_MAX).map(|_| Link::pair("door").unwrap()).collect();
        let inside: Vec<_> = links.iter().map(|(a, _)| door.enter(a.closer())).collect();
        let n = inside.iter().flatten().count();
        assert_eq!(n, 2 * limits::STRANGERS_MAX, "no more threads than that, whoever comes");
        let mut closed = 0;
        for (_, b) in links {
            let (mut r, _w) = b.split();
            r.set_read_timeout(Some(std::time::Duration::from_millis(1))).unwrap();
            closed += usize::from(r.recv(&mut Vec::new()).is_err_and(|e| e.kind == Kind::Link));
        }
        assert_eq!(closed, limits::STRANGERS_MAX);
        drop(inside);
        assert!(door.inner.lock().waiting.is_empty() && door.inner.lock().inside == 0);
    }
}
