//! The order in which paths can be registered.

use std::collections::{BTreeSet, HashMap, HashSet};

use tvix_node_protocol::StorePath;

/// All known paths, each after everything it refers to. What is not known is left out. Cycles are cut
/// somewhere: whoever registers paths in this order refuses them.
pub(crate) fn references_first<'a, R>(
    known: &'a HashMap<StorePath, R>,
    references: impl Fn(&'a R) -> &'a BTreeSet<StorePath>,
) -> Vec<&'a StorePath> {
    let mut order = Vec::with_capacity(known.len());
    let mut seen: HashSet<&StorePath> = HashSet::new();
    let mut stack = Vec::new();
    let mut enter = |path: &StorePath, stack: &mut Vec<_>| {
        if let Some((path, value)) = known.get_key_value(path)
            && seen.insert(path)
        {
            stack.push((path, references(value).iter()));
        }
    };
    // Sorted, so that the order is the same each time.
    for start in known.keys().collect::<BTreeSet<_>>() {
        enter(start, &mut stack);
        while let Some((path, rest)) = stack.last_mut() {
            match rest.next() {
                Some(reference) => enter(reference, &mut stack),
                None => {
                    order.push(*path);
                    stack.pop();
                }
            }
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_come_before_who_refers_to_them() {
        let path = |number: u8| StorePath::from_parts([number; 20], "path").unwrap();
        let order = |edges: &[(u8, &[u8])]| -> Vec<u8> {
            let edge = |&(from, to): &(u8, &[u8])| (path(from), to.iter().map(|&to| path(to)).collect());
            let graph: HashMap<StorePath, BTreeSet<StorePath>> = edges.iter().map(edge).collect();
            let order = references_first(&graph, |references| references);
            order.into_iter().map(|path| path.digest()[0]).collect()
        };
        assert_eq!(order(&[(1, &[2, 3]), (2, &[3]), (3, &[3])]), [3, 2, 1]);
        assert_eq!(order(&[(2, &[]), (1, &[])]), [1, 2]);
        assert_eq!(order(&[(1, &[2, 9]), (2, &[9])]), [2, 1], "9 is not known");
        assert_eq!(order(&[(1, &[2]), (2, &[1])]), [2, 1], "a cycle ends");
        let deep: Vec<(u8, Vec<u8>)> = (1..200).map(|from| (from, vec![from + 1])).collect();
        let deep: Vec<(u8, &[u8])> = deep.iter().map(|(from, to)| (*from, to.as_slice())).collect();
        assert_eq!(order(&deep), (1..200).rev().collect::<Vec<u8>>());
    }
}
