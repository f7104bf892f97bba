//! The content of a file: pages as calls see them, and what the platter may have of each.

use super::Rng;
use super::map::Map;
use super::runs::Runs;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a page.
pub const PAGE: usize = 4096;
/// Bytes that a disk writes as a whole.
pub const SECTOR: usize = 512;
/// The bytes of a page; `None` where one is expected is a hole.
pub type Page = Arc<[u8; PAGE]>;

/// Values of one page, and sizes of one file, that are remembered between two syncs besides the first and the last. More
/// of them are legal after a cut, but a file written for ever without a sync must have an end in memory.
const VALUES_MAX: usize = 6;
const SIZES_MAX: usize = 256;

/// What the platter may have of a page that was changed since it was last kept.
#[derive(Clone, Debug, Default)]
struct Past {
    kept: Option<Page>,
    /// Values since, in order, without the present one.
    later: Vec<Option<Page>>,
    /// A failed sync has dropped the present value: the page counts as clean, no later sync writes it.
    lost: bool,
}

#[derive(Clone, Debug, Default)]
struct Slot {
    live: Option<Page>,
    past: Option<Box<Past>>,
    /// What the platter had before the value that it has now, kept only where stale reads are wanted.
    stale: Option<Page>,
}

impl Slot {
    /// To be called before `live` changes.
    fn begin(&mut self, dirty: &mut Vec<u64>, page: u64) {
        match &mut self.past {
            None => {
                self.past = Some(Box::new(Past { kept: self.live.clone(), ..Past::default() }));
                dirty.push(page);
            }
            Some(past) if past.lost => {
                past.lost = false;
                past.later.clear();
                dirty.push(page);
            }
            Some(past) => {
                if past.later.len() == VALUES_MAX {
                    past.later.remove(0);
                }
                past.later.push(self.live.clone());
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.live.is_none() && self.past.is_none() && self.stale.is_none()
    }
}

/// The content of a regular file.
#[derive(Default)]
pub struct Data {
    size: u64,
    slots: BTreeMap<u64, Slot>,
    /// Slots with a live page.
    pages: u64,
    /// Pages set aside that read as zeroes.
    unwritten: Runs,
    /// Slots to be written by a sync.
    dirty: Vec<u64>,
    kept_size: u64,
    /// Sizes since then, in order, with the present one.
    sizes: Vec<u64>,
    /// A failed sync has dropped a page.
    lost: bool,
    map: Option<Map>,
}

/// Pages from the first that has a byte of `off..end` to one past the last.
fn touched(off: u64, end: u64) -> (u64, u64) {
    (off / PAGE as u64, end.div_ceil(PAGE as u64))
}

/// Index of the first page at or after `size`.
fn pages_of(size: u64) -> u64 {
    size.div_ceil(PAGE as u64)
}

const ZEROES: [u8; PAGE] = [0; PAGE];

fn bytes(page: &Option<Page>) -> &[u8; PAGE] {
    page.as_deref().unwrap_or(&ZEROES)
}

impl Data {
    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Pages that it takes of the disk.
    pub fn cost(&self) -> u64 {
        self.pages + self.unwritten.total()
    }

    /// Pages set aside and not written.
    pub fn set_aside(&self) -> u64 {
        self.unwritten.total()
    }

    /// True when a cut could leave something else than what calls see.
    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty() || !self.sizes.is_empty() || self.lost
    }

    /// True when a page takes no further room to be written.
    pub fn has_room(&self, page: u64) -> bool {
        self.slots.get(&page).is_some_and(|s| s.live.is_some()) || self.unwritten.contains(page)
    }

    /// Reads at `off`; 0 at and beyond the end.
    pub fn read(&self, buf: &mut [u8], off: u64) -> usize {
        self.read_with(buf, off, |_, live| bytes(live))
    }

    /// As [`Data::read`], but pages are read as the platter had them before their last sync, where it was remembered.
    /// `None` when no page of the range has such a past.
    pub fn read_stale(&self, buf: &mut [u8], off: u64) -> Option<usize> {
        let (from, to) = touched(off, (off + buf.len() as u64).min(self.size));
        let old = self.slots.range(from..to.max(from)).any(|(_, s)| s.stale.is_some() && s.past.is_none());
        old.then(|| {
            self.read_with(buf, off, |slot, live| match slot {
                Some(Slot { stale: Some(page), past: None, .. }) => page,
                _ => bytes(live),
            })
        })
    }

    fn read_with<'a>(
        &'a self,
        buf: &mut [u8],
        off: u64,
        of: impl Fn(Option<&'a Slot>, &'a Option<Page>) -> &'a [u8; PAGE],
    ) -> usize {
        let n = (self.size.saturating_sub(off)).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < n {
            let at = off + done as u64;
            let (page, within) = (at / PAGE as u64, (at % PAGE as u64) as usize);
            let len = (PAGE - within).min(n - done);
            let to = &mut buf[done..done + len];
            match self.map.as_ref().filter(|m| page < m.pages()) {
                Some(m) => to.copy_from_slice(&m.page(page)[within..within + len]),
                None => match self.slots.get(&page) {
                    Some(slot) => to.copy_from_slice(&of(Some(slot), &slot.live)[within..within + len]),
                    None => to.fill(0),
                },
            }
            done += len;
        }
        n
    }

    /// Gives a page a value, noting the former one.
    fn set(&mut self, page: u64, value: Option<Page>) {
        if value.is_none() && !self.slots.contains_key(&page) {
            return;
        }
        let slot = self.slots.entry(page).or_default();
        slot.begin(&mut self.dirty, page);
        match (slot.live.is_some(), value.is_some()) {
            (false, true) => {
                self.pages += 1;
                self.unwritten.remove(page, page + 1);
            }
            (true, false) => self.pages -= 1,
            _ => {}
        }
        if let Some(m) = self.map.as_mut().filter(|m| page < m.pages()) {
            m.page_mut(page).copy_from_slice(bytes(&value));
        }
        slot.live = value;
    }

    /// The value of a page with one part of it replaced.
    fn with(&self, page: u64, within: usize, part: &[u8]) -> Page {
        if let Ok(whole) = <&[u8; PAGE]>::try_from(part) {
            return Arc::new(*whole);
        }
        let mut new = match self.slots.get(&page).and_then(|s| s.live.as_ref()) {
            Some(live) => Arc::new(**live),
            None => Arc::new(ZEROES),
        };
        Arc::get_mut(&mut new).expect("nobody else has it yet")[within..within + part.len()].copy_from_slice(part);
        new
    }

    /// Writes what lies in one page, and lets the file grow to its end. The caller has seen that there is room.
    pub fn write_page(&mut self, part: &[u8], off: u64) {
        let (page, within) = (off / PAGE as u64, (off % PAGE as u64) as usize);
        self.look_page(page);
        let new = self.with(page, within, part);
        self.set(page, Some(new));
        let end = off + part.len() as u64;
        if end > self.size {
            self.resize(end);
        }
    }

    fn resize(&mut self, to: u64) {
        if to == self.size {
            return;
        }
        if self.sizes.len() >= SIZES_MAX {
            let mut n = 0;
            self.sizes.retain(|_| {
                n += 1;
                n % 2 == 0
            });
        }
        self.sizes.push(to);
        self.size = to;
    }

    /// ftruncate(2), and the growing of fallocate(2).
    pub fn truncate(&mut self, size: u64) {
        self.look();
        if size <= self.size {
            self.zero(size, u64::MAX);
            self.unwritten.remove(pages_of(size), u64::MAX);
        }
        self.resize(size);
    }

    /// Lets the file grow to `size` (fallocate(2) without KEEP_SIZE).
    pub fn grow(&mut self, size: u64) {
        if size > self.size {
            self.resize(size);
        }
    }

    /// Makes holes of whole pages in `off..end` and zeroes in the others.
    pub fn zero(&mut self, off: u64, end: u64) {
        self.look();
        let (first, last) = (off / PAGE as u64, end / PAGE as u64);
        for page in [first, last] {
            let start = page.saturating_mul(PAGE as u64);
            let (a, b) = (off.max(start) - start, end.min(start.saturating_add(PAGE as u64)) - start.min(end));
            let part = a > 0 || b < PAGE as u64;
            if part && a < b && self.slots.get(&page).is_some_and(|s| s.live.is_some()) {
                let new = self.with(page, a as usize, &ZEROES[..(b - a) as usize]);
                if self.slots.get(&page).is_some_and(|s| bytes(&s.live) != &*new) {
                    self.set(page, Some(new));
                }
            }
            if first == last {
                break;
            }
        }
        let whole = pages_of(off)..last;
        if whole.start < whole.end {
            let gone: Vec<u64> = self.slots.range(whole).filter(|(_, s)| s.live.is_some()).map(|(p, _)| *p).collect();
            gone.into_iter().for_each(|p| self.set(p, None));
        }
    }

    /// The pages of `off..end` that fallocate(2) would have to set aside.
    pub fn lacking(&self, off: u64, end: u64) -> u64 {
        let mut runs = self.unwritten.clone();
        self.reserve_in(&mut runs, off, end);
        runs.total() - self.unwritten.total()
    }

    /// Sets the pages of `off..end` aside.
    pub fn reserve(&mut self, off: u64, end: u64) {
        let mut runs = std::mem::take(&mut self.unwritten);
        self.reserve_in(&mut runs, off, end);
        self.unwritten = runs;
    }

    fn reserve_in(&self, runs: &mut Runs, off: u64, end: u64) {
        let (from, to) = touched(off, end);
        runs.insert(from, to);
        for (page, _) in self.slots.range(from..to).filter(|(_, s)| s.live.is_some()) {
            runs.remove(*page, page + 1);
        }
    }

    /// Gives the pages that lie wholly in `off..end` back, also those set aside (a punched hole).
    pub fn release(&mut self, off: u64, end: u64) {
        self.unwritten.remove(pages_of(off), end / PAGE as u64);
    }

    /// SEEK_DATA: the first byte at or after `off` that is no hole; `None` when there is none before the end.
    pub fn data_from(&self, off: u64) -> Option<u64> {
        let found = self.slots.range(off / PAGE as u64..).find(|(_, s)| s.live.is_some()).map(|(p, _)| p * PAGE as u64);
        found.map(|at| at.max(off)).filter(|at| *at < self.size)
    }

    /// SEEK_HOLE: the first byte at or after `off` that is in a hole; the end is one.
    pub fn hole_from(&self, off: u64) -> u64 {
        let mut page = off / PAGE as u64;
        for (p, _) in self.slots.range(page..).filter(|(_, s)| s.live.is_some()) {
            if *p != page {
                break;
            }
            page += 1;
        }
        (page * PAGE as u64).max(off).min(self.size)
    }

    /// The pages that are no holes, with their numbers.
    pub fn pages(&self) -> BTreeMap<u64, Page> {
        self.slots.iter().filter_map(|(p, s)| Some((*p, s.live.clone()?))).collect()
    }

    /// Maps the first `len` bytes: the address of a block that is the content from now on. A longer map than before has
    /// a block of its own, and what an earlier one shows is not followed any more.
    pub fn map(&mut self, len: usize) -> *mut u8 {
        self.look();
        let pages = pages_of(len as u64);
        if self.map.as_ref().is_none_or(|m| m.pages() < pages) {
            let mut m = Map::new(pages);
            for (page, slot) in self.slots.range(..pages) {
                m.page_mut(*page).copy_from_slice(bytes(&slot.live));
            }
            self.map = Some(m);
        }
        self.map.as_ref().map_or(std::ptr::null_mut(), Map::address)
    }

    /// Takes what was stored through a map, as if it had been written just now. True when something was.
    pub fn look(&mut self) -> bool {
        let pages = self.map.as_ref().map_or(0, Map::pages);
        (0..pages).fold(false, |any, page| self.look_page(page) | any)
    }

    fn look_page(&mut self, page: u64) -> bool {
        let Some(m) = self.map.as_ref().filter(|m| page < m.pages()) else { return false };
        let now = m.page(page);
        if self.slots.get(&page).map_or(&ZEROES, |s| bytes(&s.live)) == now {
            return false;
        }
        let value = Arc::new(*now);
        self.set(page, Some(value));
        true
    }

    /// True while the file is mapped.
    pub fn is_mapped(&self) -> bool {
        self.map.is_some()
    }

    /// Everything is on the platter now. `remember`: what was there before may be read by stale reads.
    pub fn keep(&mut self, remember: bool) {
        for page in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.slots.get_mut(&page) else { continue };
            if let Some(past) = slot.past.take().filter(|_| remember) {
                slot.stale = past.kept;
            }
            if slot.is_empty() {
                self.slots.remove(&page);
            }
        }
        self.kept_size = self.size;
        self.sizes.clear();
    }

    /// A sync that failed: each page was written or is lost. Calls see them as before, and no later sync writes the lost.
    pub fn lose(&mut self, rng: &mut Rng) {
        let all = rng.coin();
        for page in std::mem::take(&mut self.dirty) {
            let Some(slot) = self.slots.get_mut(&page) else { continue };
            if all || rng.coin() {
                if let Some(past) = &mut slot.past {
                    past.lost = true;
                    self.lost = true;
                    past.later.clear();
                }
            } else {
                slot.past = None;
            }
            if slot.is_empty() {
                self.slots.remove(&page);
            }
        }
    }

    /// The power goes: each page becomes one of the values that the platter may have, and so does the size.
    pub fn cut(&mut self, rng: &mut Rng, luck: Luck, sectors: bool) {
        let mapped = self.map.take().map_or(0, |m| m.pages());
        let mut empty = Vec::new();
        for (page, slot) in &mut self.slots {
            slot.stale = None;
            let Some(past) = slot.past.take() else { continue };
            slot.live = past.draw(&slot.live, rng, luck, sectors || *page < mapped);
            if slot.is_empty() {
                empty.push(*page);
            }
        }
        empty.iter().for_each(|p| drop(self.slots.remove(p)));
        self.size = self.draw_size(rng, luck);
        self.dirty.clear();
        if luck.draw(2, rng) == 0 {
            self.unwritten = Runs::default();
        }
        self.settle();
    }

    fn draw_size(&self, rng: &mut Rng, luck: Luck) -> u64 {
        let n = luck.draw(self.sizes.len() + 1, rng);
        n.checked_sub(1).and_then(|i| self.sizes.get(i)).map_or(self.kept_size, |size| *size)
    }

    /// Cuts the content to its first `keep` bytes on both sides, as nobody's call does.
    pub fn tear(&mut self, keep: u64) {
        self.size = self.size.min(keep);
        self.settle();
    }

    /// What is there now is what is kept; nothing beyond the end.
    fn settle(&mut self) {
        let end = pages_of(self.size);
        self.slots.split_off(&end);
        let tail = (self.size % PAGE as u64) as usize;
        if tail > 0
            && let Some(live) = self.slots.get_mut(&(end - 1)).and_then(|s| s.live.as_mut())
            && live[tail..].iter().any(|b| *b != 0)
        {
            Arc::make_mut(live)[tail..].fill(0);
        }
        self.slots.values_mut().for_each(|s| s.past = None);
        self.slots.retain(|_, s| !s.is_empty());
        self.unwritten.remove(end, u64::MAX);
        for (page, slot) in &self.slots {
            if slot.live.is_some() {
                self.unwritten.remove(*page, page + 1);
            }
        }
        self.pages = self.slots.values().filter(|s| s.live.is_some()).count() as u64;
        self.dirty.clear();
        self.lost = false;
        self.kept_size = self.size;
        self.sizes.clear();
        if let Some(m) = &mut self.map {
            for page in 0..m.pages() {
                m.page_mut(page).copy_from_slice(self.slots.get(&page).map_or(&ZEROES, |s| bytes(&s.live)));
            }
        }
    }

    /// Flips a bit of a byte behind everyone's back, in every value of its page. The byte before and after, or `None`
    /// where nothing is written.
    pub fn rot(&mut self, off: u64, bit: u32) -> Option<(u8, u8)> {
        let (page, within) = (off / PAGE as u64, (off % PAGE as u64) as usize);
        let slot = self.slots.get_mut(&page).filter(|_| off < self.size)?;
        let live = slot.live.as_mut()?;
        let old = live[within];
        let new = old ^ (1 << bit);
        let flip = |p: &mut Option<Page>| {
            if let Some(p) = p {
                Arc::make_mut(p)[within] ^= 1 << bit;
            }
        };
        Arc::make_mut(live)[within] = new;
        if let Some(past) = &mut slot.past {
            flip(&mut past.kept);
            past.later.iter_mut().for_each(flip);
        }
        if let Some(m) = self.map.as_mut().filter(|m| page < m.pages()) {
            m.page_mut(page)[within] = new;
        }
        Some((old, new))
    }

    /// The numbers of the pages that are written.
    pub fn written(&self) -> Vec<u64> {
        self.slots.iter().filter(|(_, s)| s.live.is_some()).map(|(p, _)| *p).collect()
    }
}

/// How much of what was not synced a cut leaves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Luck {
    /// Nothing.
    None,
    /// Everything.
    All,
    /// Whatever is drawn.
    Any,
}

impl Luck {
    /// One of `0..n`, of which 0 is the oldest; `n` is at least 1.
    pub fn draw(self, n: usize, rng: &mut Rng) -> usize {
        match self {
            Luck::None => 0,
            Luck::All => n - 1,
            Luck::Any => rng.index(n),
        }
    }
}

impl Past {
    fn draw(&self, live: &Option<Page>, rng: &mut Rng, luck: Luck, sectors: bool) -> Option<Page> {
        let values: Vec<&Option<Page>> =
            std::iter::once(&self.kept).chain(&self.later).chain((!self.lost).then_some(live)).collect();
        if !sectors || luck != Luck::Any || values.len() == 1 {
            return values[luck.draw(values.len(), rng)].clone();
        }
        let mut new = ZEROES;
        let mut written = false;
        for at in (0..PAGE).step_by(SECTOR) {
            let from = values[rng.index(values.len())];
            written |= from.is_some();
            new[at..at + SECTOR].copy_from_slice(&bytes(from)[at..at + SECTOR]);
        }
        written.then(|| Arc::new(new))
    }
}
