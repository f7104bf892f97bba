//! Chains against replayed histories: each replica is the list of its entries with the epoch that made each.

use super::*;
use crate::base::Kind;
use crate::format::codec;
use proptest::prelude::*;

fn chain(of: &[(u64, &str, u64)]) -> Chain {
    let epochs = of.iter().map(|&(number, site, parent)| Epoch {
        number,
        site: site.into(),
        random: number * 1000 + site.len() as u64 + u64::from(site.as_bytes().first().copied().unwrap_or(0)),
        parent: Seq(parent),
        over: 0,
    });
    Chain::from_epochs(epochs.collect())
}

#[test]
fn the_picture_of_the_module() {
    let a = chain(&[(1, "a", 0), (2, "a", 100)]);
    let c = chain(&[(1, "a", 0), (3, "c", 100)]);
    let (ha, hc) = (Seq(130), Seq(170));
    assert_eq!(a.meet(ha, &c, hc), Meeting::Diverged { common: Seq(100), mine_after: ha, theirs_after: hc });
    let both = |a: &Chain, ha, c: &Chain, hc| (a.winner(ha, c, hc), c.winner(hc, a, ha));
    let split = (Some(Winner::SplitBrain), Some(Winner::SplitBrain));
    assert_eq!(both(&a, ha, &c, hc), split);
    let (mine, theirs) = ((Some(Winner::Mine), Some(Winner::Theirs)), (Some(Winner::Theirs), Some(Winner::Mine)));
    // A began no epoch: a stale primary's tail. A wrote nothing under its own, or C did not.
    assert_eq!(both(&chain(&[(1, "a", 0)]), ha, &c, hc), theirs);
    assert_eq!(both(&chain(&[(1, "a", 0), (2, "a", 129)]), ha, &c, hc), theirs);
    assert_eq!(both(&a, ha, &chain(&[(1, "a", 0), (3, "c", 100), (4, "c", 101)]), Seq(102)), mine);
    // The operator's word, at either side; what is written under another epoch after it counts again.
    let mut kept = a.clone();
    kept.begin_over("a", 5, ha, c.head().unwrap()).unwrap();
    assert_eq!(kept.head().unwrap().number, 4);
    assert_eq!(both(&kept, Seq(131), &c, hc), mine);
    let mut later = c.clone();
    later.begin("c", 6, hc).unwrap();
    assert_eq!(both(&kept, Seq(131), &later, Seq(171)), mine);
    assert_eq!(both(&kept, Seq(131), &later, Seq(172)), split);
    assert!(a.contains(&c.epochs()[0], Seq(100), ha));
    assert!(!a.contains(&c.epochs()[1], Seq(101), ha) && !a.contains(&a.epochs()[1], Seq(100), ha));
    assert_eq!(a.epoch_of(Seq(100)).unwrap().number, 1);
    assert_eq!(a.epoch_of(Seq(101)).unwrap().number, 2);
    assert_eq!(a.epoch_of(Seq(0)), None);
}

#[test]
fn a_taken_over_replica_wins_though_the_old_primary_has_more_entries() {
    let old = chain(&[(1, "a", 0)]);
    let new = chain(&[(1, "a", 0), (2, "c", 100)]);
    assert_eq!(new.meet(Seq(100), &old, Seq(105)), Meeting::IAmBehind { common: Seq(100) });
    assert_eq!(new.winner(Seq(100), &old, Seq(105)), Some(Winner::Mine));
}

#[test]
fn two_reigns_are_a_split_brain_only_when_both_were_written_under() {
    let (a, c) = (chain(&[(1, "a", 0), (2, "a", 9)]), chain(&[(1, "a", 0), (2, "c", 9)]));
    assert_eq!(a.winner(Seq(11), &c, Seq(11)), Some(Winner::SplitBrain));
    assert_eq!(a.winner(Seq(10), &c, Seq(11)), Some(Winner::Theirs));
    assert_eq!(a.winner(Seq(10), &c, Seq(9)), Some(Winner::Mine));
    assert_eq!(a.winner(Seq(9), &c, Seq(11)), Some(Winner::Theirs));
    assert_eq!(
        (a.winner(Seq(9), &c, Seq(9)), c.winner(Seq(9), &a, Seq(9))),
        (Some(Winner::Theirs), Some(Winner::Mine))
    );
    assert_eq!(a.winner(Seq(9), &a, Seq(9)), Some(Winner::Both));
}

#[test]
fn strangers_are_unrelated() {
    let (a, b) = (chain(&[(1, "a", 0)]), chain(&[(1, "b", 0)]));
    assert_eq!((a.meet(Seq(5), &b, Seq(5)), a.winner(Seq(5), &b, Seq(5))), (Meeting::Unrelated, None));
    assert_eq!(a.meet(Seq(5), &Chain::default(), Seq(0)), Meeting::Unrelated);
}

#[test]
fn a_chain_forgets_its_oldest_epochs_and_still_meets() {
    let mut a = Chain::default();
    let mut old = Chain::default();
    for i in 0..EPOCHS_MAX as u64 + 10 {
        a.begin("a", i, Seq(i)).unwrap();
        if i < 20 {
            old = a.clone();
        }
    }
    assert_eq!(a.epochs().len(), EPOCHS_MAX);
    a.validate(Seq(2000)).unwrap();
    assert_eq!(a.meet(Seq(2000), &old, Seq(19)), Meeting::OtherBehind { common: Seq(19) });
}

#[test]
fn nonsense_is_refused() {
    for bad in [
        chain(&[(2, "a", 0), (2, "a", 5)]),
        chain(&[(3, "a", 0), (2, "a", 5)]),
        chain(&[(1, "a", 6), (2, "a", 5)]),
        chain(&[(0, "a", 0)]),
        chain(&[(1, "", 0)]),
        chain(&[(1, "a", 11)]),
        Chain::from_epochs(
            (1..=EPOCHS_MAX as u64 + 1)
                .map(|number| Epoch { number, site: "a".into(), random: 0, parent: Seq(0), over: 0 })
                .collect(),
        ),
    ] {
        assert_eq!(bad.validate(Seq(10)).unwrap_err().kind, Kind::Corrupt);
    }
    let mut a = chain(&[(1, "a", 0), (2, "a", 5)]);
    assert!(a.begin("a", 1, Seq(4)).is_err());
    assert!(a.append(a.epochs()[0].clone()).is_err());
    a.append(a.epochs()[1].clone()).unwrap();
    assert_eq!(a.epochs().len(), 2);
}

proptest! {
    /// A shared past, then each replica alone: the common point is where the lists of (entry, epoch) part.
    #[test]
    fn common_is_where_the_histories_part(
        past in prop::collection::vec(any::<bool>(), 1..20), mine in prop::collection::vec(any::<bool>(), 0..10),
        theirs in prop::collection::vec(any::<bool>(), 0..10), new_reign in any::<bool>(),
    ) {
        fn grow(c: &mut Chain, history: &mut Vec<Epoch>, steps: &[bool], site: &str) {
            for (i, begin) in steps.iter().enumerate() {
                if *begin || c.head().is_none() {
                    c.begin(site, i as u64, Seq(history.len() as u64)).unwrap();
                }
                history.push(c.head().unwrap().clone());
            }
        }
        let (mut a, mut ha) = (Chain::default(), vec![]);
        grow(&mut a, &mut ha, &past, "past");
        let (mut b, mut hb) = (a.clone(), ha.clone());
        grow(&mut a, &mut ha, &mine, "a");
        if new_reign {
            b.begin("b", 99, Seq(hb.len() as u64)).unwrap();
            grow(&mut b, &mut hb, &theirs, "b");
        }
        let (na, nb) = (Seq(ha.len() as u64), Seq(hb.len() as u64));
        let common = ha.iter().zip(&hb).take_while(|(x, y)| x == y).count() as u64;
        prop_assert_eq!(a.common(na, &b, nb), Some(Seq(common)));
        prop_assert_eq!(b.common(nb, &a, na), Some(Seq(common)));
        for c in [&a, &b] {
            let back: Chain = codec::decode(&codec::encode(c).unwrap()).unwrap();
            prop_assert_eq!(&back, c);
        }
        let swapped = match a.winner(na, &b, nb).unwrap() {
            Winner::Mine => Winner::Theirs,
            Winner::Theirs => Winner::Mine,
            w => w,
        };
        prop_assert_eq!(b.winner(nb, &a, na), Some(swapped));
    }
}
