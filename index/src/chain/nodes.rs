//! Nodes in pieces of a fixed size, so that growing never copies, nor takes twice the memory.

use super::BlockKey;

/// No node.
pub(super) const NONE: u32 = u32::MAX;

const PIECE: usize = 1 << 12;

#[derive(Clone, Copy, Debug)]
pub(super) struct Node<P> {
    pub(super) key: BlockKey,
    pub(super) place: P,
    pub(super) parent: u32,
    pub(super) first_child: u32,
    /// Siblings are a doubly linked list, so that leaving it needs no search.
    pub(super) next: u32,
    pub(super) previous: u32,
    /// As are the blocks of a group.
    pub(super) group_next: u32,
    pub(super) group_previous: u32,
    pub(super) touched: u32,
}

impl<P> Node<P> {
    pub(super) fn new(key: BlockKey, place: P, touched: u32) -> Self {
        Self {
            key,
            place,
            parent: NONE,
            first_child: NONE,
            next: NONE,
            previous: NONE,
            group_next: NONE,
            group_previous: NONE,
            touched,
        }
    }
}

#[derive(Debug)]
pub(super) struct Nodes<P> {
    pieces: Vec<Vec<Option<Node<P>>>>,
    free: Vec<u32>,
}

impl<P> Default for Nodes<P> {
    fn default() -> Self {
        Self { pieces: Vec::new(), free: Vec::new() }
    }
}

impl<P> Nodes<P> {
    pub(super) fn bytes(&self) -> u64 {
        let nodes = self.pieces.len() * PIECE * size_of::<Option<Node<P>>>();
        let free = self.free.capacity() * size_of::<u32>();
        u64::try_from(nodes + free).expect("usize fits")
    }

    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    /// The present nodes of a piece. A node stays in its own.
    pub(super) fn piece(&self, piece: usize) -> impl Iterator<Item = &Node<P>> {
        self.pieces.get(piece).into_iter().flatten().flatten()
    }

    pub(super) fn add(&mut self, node: Node<P>) -> u32 {
        if let Some(index) = self.free.pop() {
            *self.slot(index) = Some(node);
            return index;
        }
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let full = (self.pieces.len() - 1) * PIECE;
        let piece = self.pieces.last_mut().expect("pushed above");
        piece.push(Some(node));
        u32::try_from(full + piece.len() - 1)
            .ok()
            .filter(|&index| index != NONE)
            .expect("fewer than 2^32 - 1 blocks")
    }

    pub(super) fn take(&mut self, index: u32) -> Node<P> {
        self.free.push(index);
        self.slot(index).take().expect("linked nodes are present")
    }

    pub(super) fn get(&self, index: u32) -> &Node<P> {
        let index = as_index(index);
        self.pieces[index / PIECE][index % PIECE].as_ref().expect("linked nodes are present")
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Node<P> {
        self.slot(index).as_mut().expect("linked nodes are present")
    }

    fn slot(&mut self, index: u32) -> &mut Option<Node<P>> {
        let index = as_index(index);
        &mut self.pieces[index / PIECE][index % PIECE]
    }
}

pub(super) fn as_index(index: u32) -> usize {
    usize::try_from(index).expect("32 bits fit")
}
