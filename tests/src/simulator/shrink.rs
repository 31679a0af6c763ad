//! Delta debugging: which faults of a failing run are needed (Zeller and Hildebrandt, "Simplifying and isolating
//! failure-inducing input", 2002).

/// A small subset of `all` for which `fails` still says yes. `fails` is asked at most `most` times. Without any of the
/// elements left, it may still fail: then the subset is empty.
pub fn shrink(all: &[usize], most: usize, mut fails: impl FnMut(&[usize]) -> bool) -> Vec<usize> {
    let mut left = most;
    let mut ask = |subset: &[usize]| {
        let may = left > 0;
        left = left.saturating_sub(1);
        may && fails(subset)
    };
    if ask(&[]) {
        return Vec::new();
    }
    let mut kept = all.to_vec();
    let mut parts = 2;
    while kept.len() > 1 {
        let size = kept.len().div_ceil(parts);
        let mut smaller = kept.chunks(size).map(<[usize]>::to_vec).find(|part| parts == 2 && ask(part));
        if smaller.is_none() {
            smaller = kept
                .chunks(size)
                .map(|part| kept.iter().copied().filter(|n| !part.contains(n)).collect::<Vec<_>>())
                .find(|rest| rest.len() < kept.len() && !rest.is_empty() && ask(rest));
        }
        match smaller {
            Some(smaller) => {
                kept = smaller;
                parts = (parts - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(kept.len()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_needed_is_left() {
        let all: Vec<usize> = (0..12).collect();
        for needed in [vec![5], vec![0, 11], vec![2, 3, 9], vec![1, 4, 7, 10]] {
            let mut asked = 0;
            let found = shrink(&all, 200, |subset| {
                asked += 1;
                needed.iter().all(|n| subset.contains(n))
            });
            assert_eq!(found, needed, "{asked} questions");
            assert!(asked < 70, "{asked} questions");
        }
        assert!(shrink(&all, 200, |_| true).is_empty(), "it fails without any fault");
        assert_eq!(shrink(&all, 1, |subset| !subset.is_empty()).len(), 12, "no questions left");
        assert_eq!(shrink(&[4], 9, |subset| !subset.is_empty()), [4]);
    }
}
