//! Objects with a header and their elements in one allocation, behind a pointer of one word.

use std::marker::PhantomData;
use std::ptr::NonNull;

use super::Heap;

/// What stands before the elements.
#[repr(C)]
pub(super) struct Head<H> {
    header: H,
    len: u32,
}

/// Reference to an object made of a header, a length and elements.
pub(super) struct Thin<'h, H, T> {
    pointer: NonNull<Head<H>>,
    lives: PhantomData<(&'h H, &'h [T])>,
}

impl<H, T> Clone for Thin<'_, H, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<H, T> Copy for Thin<'_, H, T> {}

impl<'h, H, T> Thin<'h, H, T> {
    /// Offset of the first element: right after the length, at T's alignment (bytes use what would be padding).
    const ELEMENTS: usize = (std::mem::offset_of!(Head<H>, len) + 4).next_multiple_of(align_of::<T>());

    #[inline]
    pub(super) fn header(self) -> &'h H {
        // SAFETY: invariant 2, the object is initialised and lives for 'h.
        unsafe { &(*self.pointer.as_ptr()).header }
    }

    #[inline]
    pub(super) fn len(self) -> usize {
        // SAFETY: invariant 2.
        unsafe { (*self.pointer.as_ptr()).len as usize }
    }

    #[inline]
    pub(super) fn elements(self) -> &'h [T] {
        // SAFETY: invariant 2; the pointer may reach the whole allocation.
        unsafe {
            let first = self.pointer.cast::<u8>().add(Self::ELEMENTS).cast::<T>();
            std::slice::from_raw_parts(first.as_ptr(), self.len())
        }
    }

    #[inline]
    pub(super) fn as_ptr(self) -> NonNull<u8> {
        self.pointer.cast()
    }

    /// # Safety
    /// The pointer must come from [`Self::as_ptr`] of an object of the same type that lives for `'h`.
    #[inline]
    pub(super) unsafe fn from_ptr(pointer: NonNull<u8>) -> Self {
        Self {
            pointer: pointer.cast(),
            lives: PhantomData,
        }
    }

    #[inline]
    pub(super) fn same(self, other: Self) -> bool {
        self.pointer == other.pointer
    }
}

impl Heap {
    /// Makes a thin object. `element` may use the heap; nobody sees the object before it is complete.
    #[inline]
    pub(super) fn thin<'h, H, T>(
        &'h self,
        header: H,
        len: usize,
        mut element: impl FnMut(usize) -> T,
    ) -> Thin<'h, H, T> {
        const { assert!(!std::mem::needs_drop::<H>() && !std::mem::needs_drop::<T>()) };
        const { assert!(align_of::<Head<H>>() <= 8 && align_of::<T>() <= 8) };
        let short = Self::short_len(len);
        let elements = Thin::<H, T>::ELEMENTS;
        let size = (elements + size_of::<T>() * len).max(size_of::<Head<H>>());
        let place = self.arena.allocate(size);
        // SAFETY: fresh memory, large enough for head and elements, all initialised before use. The head is
        // written field by field, so that its padding does not overwrite elements that lie in it.
        unsafe {
            let head = place.cast::<Head<H>>().as_ptr();
            (&raw mut (*head).header).write(header);
            (&raw mut (*head).len).write(short);
            let first = place.add(elements).cast::<T>();
            for index in 0..len {
                first.add(index).write(element(index));
            }
        }
        Thin {
            pointer: place.cast(),
            lives: PhantomData,
        }
    }

    /// A thin object whose elements are copied from a slice.
    #[inline]
    pub(super) fn thin_copy<'h, H, T: Copy>(&'h self, header: H, from: &[T]) -> Thin<'h, H, T> {
        const { assert!(!std::mem::needs_drop::<H>() && align_of::<T>() <= 8) };
        let short = Self::short_len(from.len());
        let elements = Thin::<H, T>::ELEMENTS;
        let place = self
            .arena
            .allocate((elements + size_of_val(from)).max(size_of::<Head<H>>()));
        // SAFETY: as in `thin`; the memory is fresh, so it cannot overlap the source.
        unsafe {
            let head = place.cast::<Head<H>>().as_ptr();
            (&raw mut (*head).header).write(header);
            (&raw mut (*head).len).write(short);
            std::ptr::copy_nonoverlapping(
                from.as_ptr(),
                place.add(elements).cast::<T>().as_ptr(),
                from.len(),
            );
        }
        Thin {
            pointer: place.cast(),
            lives: PhantomData,
        }
    }

    /// A thin object whose elements are those of several slices.
    pub(super) fn thin_concat<'h, H, T: Copy>(&'h self, header: H, from: &[&[T]]) -> Thin<'h, H, T> {
        const { assert!(!std::mem::needs_drop::<H>() && align_of::<T>() <= 8) };
        let len = from.iter().map(|part| part.len()).sum();
        let short = Self::short_len(len);
        let elements = Thin::<H, T>::ELEMENTS;
        let place = self
            .arena
            .allocate((elements + size_of::<T>() * len).max(size_of::<Head<H>>()));
        // SAFETY: as in `thin_copy`; the parts together have `len` elements.
        unsafe {
            let head = place.cast::<Head<H>>().as_ptr();
            (&raw mut (*head).header).write(header);
            (&raw mut (*head).len).write(short);
            let mut end = place.add(elements).cast::<T>();
            for part in from {
                std::ptr::copy_nonoverlapping(part.as_ptr(), end.as_ptr(), part.len());
                end = end.add(part.len());
            }
        }
        Thin {
            pointer: place.cast(),
            lives: PhantomData,
        }
    }

    #[inline]
    fn short_len(len: usize) -> u32 {
        // Four thousand million elements do not fit into the memory of the machines this runs on; builtins that
        // take a length from the program check it before they come here.
        assert!(
            u32::try_from(len).is_ok(),
            "an object with more than 2^32 elements"
        );
        len as u32
    }
}
