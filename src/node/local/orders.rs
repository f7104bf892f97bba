//! Orders for a pair, given at either end (MS-27). The primary decides; an order given at the other end goes to it.

use super::*;
use crate::format::msg::{Begin, Msg, PairOrder};
use crate::node::equal::{self, Vouch};
use crate::node::status::Progress;
use crate::pair::equal::How;

/// How long a change of roles that was ordered is waited for.
pub(super) const HANDED: Duration = Duration::from_secs(90);

/// How long the end of a link that was ordered is waited for.
const ENDS: Duration = Duration::from_secs(2);

impl LocalGroup {
    /// An order for a pair. Returns its state here then. [`Kind::Link`]: the primary cannot be reached. `tell` hears how far
    /// a comparison is that the order makes here.
    pub fn order(self: &Arc<Self>, pair: &Arc<Pair>, order: PairOrder, tell: &dyn Fn(&Progress)) -> Result<State> {
        if self.primary().is_some() {
            return match order {
                PairOrder::Take => self.give(pair),
                o => self.order_here(pair, o, "ordered".into(), tell),
            };
        }
        if order == PairOrder::Take {
            if self.linked().is_none_or(|site| site != pair.peer) {
                return Err(Error::refused(format!(
                    "pair {} has no link: the roles cannot change in order",
                    pair.name
                )));
            }
            return self.takeover_handed(false, false, None).map(|_| pair.state());
        }
        let Some(r) = self.secondary() else {
            return Err(Error::failed(format!("group {} is down", self.cfg.name)));
        };
        self.ask_other_end(pair, &r.replica, order)?;
        // Without a link nobody else tells this end.
        if !pair.linked() {
            match order {
                PairOrder::Split => pair.parted(false)?,
                PairOrder::Delete => pair.parted(true)?,
                _ => {}
            }
        }
        Ok(pair.state())
    }

    fn ask_other_end(&self, pair: &Pair, replica: &Replica, order: PairOrder) -> Result<()> {
        match self.ctx.ask(pair, replica, Wish::Order(order)) {
            Ok(Msg::Ready { .. }) => Ok(()),
            Ok(Msg::Reject { text, .. }) => Err(Error::refused(text)),
            Ok(_) => Err(Error::corrupt("unexpected answer")),
            Err(e) if matches!(e.kind, Kind::Failed | Kind::Timeout | Kind::Link) => Err(Error::link(format!(
                "the order for pair {} is for site {}, which cannot be reached: {e}",
                pair.name, pair.peer
            ))),
            Err(e) => Err(e),
        }
    }

    /// At the primary.
    fn order_here(&self, pair: &Arc<Pair>, order: PairOrder, why: String, tell: &dyn Fn(&Progress)) -> Result<State> {
        if order == PairOrder::Resync && pair.state().reason() == Some(Reason::SplitBrain) {
            return Err(Error::refused(crate::node::session::split_brain(&self.cfg.name, pair)));
        }
        let event = match order {
            PairOrder::Create(Begin::Copy) => Event::Create { no_copy: false },
            PairOrder::Create(Begin::Compare) => return self.create_equal(pair, How::Content, tell),
            PairOrder::Create(Begin::Trust) => return self.create_equal(pair, How::Attributes, tell),
            PairOrder::Split => Event::Split,
            PairOrder::Resync => Event::Resync,
            PairOrder::Delete => Event::Delete,
            PairOrder::Take => return Err(Error::refused(format!("site {} is primary", self.site))),
        };
        let mut state = pair.event(event, Some(why))?;
        if matches!(event, Event::Split | Event::Delete) {
            // What is written after this order was answered does not go there any more.
            let until = Instant::now() + ENDS;
            while pair.linked() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
            state = pair.state();
        }
        if let Some((g, i)) = self.primary().zip(self.pairs.iter().position(|p| Arc::ptr_eq(p, pair))) {
            // Until the pair fences again: from PAIR on, or when a fault ends the way there.
            if pair.unfenced() {
                g.waive(i);
            }
        }
        Ok(state)
    }

    /// Makes the pair without a first copy, if both ends are equal; until that is known nothing is changed.
    fn create_equal(&self, pair: &Arc<Pair>, how: How, tell: &dyn Fn(&Progress)) -> Result<State> {
        let v = Vouch::new(how);
        pair.set_vouch(&v)?;
        equal::wait(pair, &v, &|| self.primary().is_some(), tell)?;
        Ok(pair.state())
    }

    /// The primary gives its role to the secondary of the pair.
    fn give(&self, pair: &Arc<Pair>) -> Result<State> {
        if pair.state() != State::Pair {
            return Err(Error::refused(format!(
                "pair {} is in {}: the roles can change in PAIR only",
                pair.name,
                pair.state()
            )));
        }
        *self.note.lock() = None;
        self.ask_other_end(pair, &*self.replica()?, PairOrder::Take)?;
        let until = Instant::now() + HANDED;
        while Instant::now() < until {
            if self.primary().is_none() && self.linked().is_some() {
                return Ok(pair.state());
            }
            if let Some(why) = self.note.lock().clone() {
                return Err(Error::failed(why));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Err(Error::new(Kind::Timeout, format!("site {} has not taken over; see `kagami status` there", pair.peer)))
    }

    /// An order that was given at the other end of a pair.
    pub(super) fn ordered_by(self: &Arc<Self>, hello: &Hello, order: PairOrder) -> Result<()> {
        let pair = self.pairs.iter().find(|p| p.name == hello.pair && p.peer == hello.site);
        let pair = pair.ok_or_else(|| Error::refused(format!("no such pair at site {}", self.site)))?;
        if order == PairOrder::Take {
            if self.secondary().is_none() || self.linked().is_none_or(|site| site != hello.site) {
                return Err(Error::refused(format!("site {} does not receive from site {}", self.site, hello.site)));
            }
            let me = self.clone();
            std::thread::Builder::new().name("take".into()).spawn(move || {
                if let Err(e) = me.handed(false, false, None, false) {
                    log::error!("group {}: taking over by order: {e}", me.cfg.name);
                    *me.note.lock() = Some(format!("not taken over: {e}"));
                }
            })?;
            return Ok(());
        }
        if self.primary().is_none() {
            return Err(Error::refused(format!(
                "neither site {} nor site {} is primary of group {}: give the order at its primary",
                hello.site, self.site, self.cfg.name
            )));
        }
        self.order_here(pair, order, format!("ordered at site {}", hello.site), &|_| ()).map(drop)
    }
}
