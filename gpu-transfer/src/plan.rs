//! Which bytes go where.

/// One contiguous copy, in bytes from the start of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    pub(crate) source: u64,
    pub(crate) target: u64,
    pub(crate) length: u64,
}

impl Copy {
    /// Whether `next` goes on where this one ends, on both sides.
    fn continues_in(&self, next: &Self) -> bool {
        self.source.checked_add(self.length) == Some(next.source)
            && self.target.checked_add(self.length) == Some(next.target)
            && self.length.checked_add(next.length).is_some()
    }
}

/// Copies in the order in which they are to be made.
///
/// The order is kept because a load's early layers must arrive first; a copy that continues the one
/// before it is merged into that one, because what an engine pays for is the number of copies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    copies: Vec<Copy>,
}

impl Plan {
    pub(crate) fn push(&mut self, copy: Copy) {
        if copy.length == 0 {
            return;
        }
        match self.copies.last_mut() {
            Some(last) if last.continues_in(&copy) => last.length += copy.length,
            Some(_) | None => self.copies.push(copy),
        }
    }

    pub(crate) fn copies(&self) -> &[Copy] {
        &self.copies
    }
}

impl Extend<Copy> for Plan {
    fn extend<I: IntoIterator<Item = Copy>>(&mut self, copies: I) {
        for copy in copies {
            self.push(copy);
        }
    }
}

impl FromIterator<Copy> for Plan {
    fn from_iter<I: IntoIterator<Item = Copy>>(copies: I) -> Self {
        let mut plan = Self::default();
        plan.extend(copies);
        plan
    }
}

#[cfg(test)]
mod tests;
