//! The bump arena behind the heap.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::{Cell, RefCell};
use std::ptr::NonNull;

use tvix_node_protocol::nix::store_path::StorePath;

/// Alignment of everything in the arena; frees the low three bits of every pointer for tags.
const ALIGN: usize = 8;

/// Size of the first chunk, enough for a small expression and cheap to ask for.
const FIRST_CHUNK: usize = 256 << 10;

/// Chunks double up to this size: large enough that the system is rarely asked, small enough that the last
/// one wastes little address space.
const LARGEST_CHUNK: usize = 32 << 20;

/// Size of the system's huge pages on the machines this runs on; elsewhere asking for them has no effect.
const HUGE_PAGE: usize = 2 << 20;

/// A bump arena. Allocates downwards from the end of a chunk, which makes alignment a mask.
#[derive(Debug)]
pub(super) struct Arena {
    /// Lowest address in use of the current chunk.
    top: Cell<*mut u8>,
    /// First byte of the current chunk.
    start: Cell<*mut u8>,
    chunks: RefCell<Vec<(NonNull<u8>, Layout)>>,
    next_chunk: Cell<usize>,
}

impl Arena {
    fn new() -> Self {
        Self {
            top: Cell::new(std::ptr::null_mut()),
            start: Cell::new(std::ptr::null_mut()),
            chunks: RefCell::default(),
            next_chunk: Cell::new(FIRST_CHUNK),
        }
    }

    /// Uninitialised memory of `size` bytes, aligned to 8.
    #[inline]
    pub(super) fn allocate(&self, size: usize) -> NonNull<u8> {
        let size = (size + (ALIGN - 1)) & !(ALIGN - 1);
        let top = self.top.get();
        if top.addr() - self.start.get().addr() < size {
            return self.allocate_in_new_chunk(size);
        }
        // SAFETY: the subtraction stays within the chunk, as the space between start and top was checked.
        unsafe {
            let place = top.sub(size);
            self.top.set(place);
            NonNull::new_unchecked(place)
        }
    }

    #[cold]
    #[inline(never)]
    fn allocate_in_new_chunk(&self, size: usize) -> NonNull<u8> {
        let wanted = self.next_chunk.get();
        self.next_chunk.set((wanted * 2).min(LARGEST_CHUNK));
        // An object larger than a chunk gets a chunk of its own and the current one stays in use.
        let own = size > wanted / 4;
        let bytes = if own { size.max(ALIGN) } else { wanted };
        let huge = bytes >= HUGE_PAGE;
        let Ok(layout) = Layout::from_size_align(bytes, if huge { HUGE_PAGE } else { 16 }) else {
            // More than isize::MAX bytes: as hopeless as the allocator saying no.
            handle_alloc_error(Layout::new::<u8>());
        };
        // SAFETY: the layout's size is not zero.
        let chunk = unsafe { alloc(layout) };
        let Some(chunk) = NonNull::new(chunk) else {
            handle_alloc_error(layout)
        };
        if huge {
            use_huge_pages(chunk, bytes);
        }
        self.chunks.borrow_mut().push((chunk, layout));
        if own {
            return chunk;
        }
        self.start.set(chunk.as_ptr());
        // SAFETY: one past the end of the chunk.
        self.top.set(unsafe { chunk.as_ptr().add(bytes) });
        self.allocate(size)
    }

    fn allocated(&self) -> usize {
        let chunks: usize = self.chunks.borrow().iter().map(|(_, layout)| layout.size()).sum();
        chunks - (self.top.get().addr() - self.start.get().addr())
    }
}

/// Asks the system for huge pages: first touches of small ones are a seventh of the time of a large evaluation.
/// Where it has none to give, nothing changes.
fn use_huge_pages(chunk: NonNull<u8>, bytes: usize) {
    if cfg!(miri) {
        return;
    }
    let bytes = bytes & !(HUGE_PAGE - 1);
    // It is advice only: a system that does not take it works as well, only slower.
    // SAFETY: the range is a part of a chunk that was just allocated; the advice does not change its contents.
    let (Ok(()) | Err(_)) =
        unsafe { rustix::mm::madvise(chunk.as_ptr().cast(), bytes, rustix::mm::Advice::LinuxHugepage) };
}

impl Drop for Arena {
    fn drop(&mut self) {
        for (chunk, layout) in self.chunks.get_mut().drain(..) {
            // SAFETY: allocated with this layout in `allocate_in_new_chunk`, freed once; nothing outlives the
            // arena, as everything in it is borrowed from it.
            unsafe { dealloc(chunk.as_ptr(), layout) };
        }
    }
}

/// The heap of one evaluation.
#[derive(Debug)]
pub(crate) struct Heap {
    pub(super) arena: Arena,
    /// Store paths own their name, so they lie outside of the arena, which runs no destructors.
    paths: RefCell<Vec<NonNull<StorePath>>>,
}

impl Heap {
    /// An empty heap; takes no memory before something is put into it.
    pub(crate) fn new() -> Self {
        Self {
            arena: Arena::new(),
            paths: RefCell::default(),
        }
    }

    /// Bytes in use.
    pub(crate) fn allocated(&self) -> usize {
        self.arena.allocated()
    }

    /// Puts a value into the heap. Its destructor never runs, so types that own something outside are refused
    /// at compile time.
    #[inline]
    pub(crate) fn alloc<T>(&self, value: T) -> &T {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= ALIGN) };
        let place = self.arena.allocate(size_of::<T>()).cast::<T>();
        // SAFETY: fresh memory of the right size and alignment, initialised here, valid as long as self.
        unsafe {
            place.write(value);
            place.as_ref()
        }
    }

    /// Keeps a store path as long as the heap.
    pub(crate) fn keep_path(&self, path: StorePath) -> &StorePath {
        let path = NonNull::from(Box::leak(Box::new(path)));
        self.paths.borrow_mut().push(path);
        // SAFETY: the path is neither moved nor changed nor freed before the heap is dropped.
        unsafe { path.as_ref() }
    }

    /// Copies a text into the heap.
    pub(crate) fn keep_text(&self, text: &str) -> &str {
        let bytes = text.as_bytes();
        let kept = self.alloc_slice(bytes.len(), |index| bytes[index]);
        // The same bytes, so UTF-8 as before.
        std::str::from_utf8(kept).unwrap_or_default()
    }

    /// Puts a slice into the heap, element by element.
    pub(crate) fn alloc_slice<T>(&self, len: usize, mut element: impl FnMut(usize) -> T) -> &[T] {
        const { assert!(!std::mem::needs_drop::<T>() && align_of::<T>() <= ALIGN) };
        let place = self.arena.allocate(size_of::<T>() * len).cast::<T>();
        for index in 0..len {
            // SAFETY: within the memory allocated above.
            unsafe { place.add(index).write(element(index)) };
        }
        // SAFETY: all elements are initialised, the memory is valid as long as self.
        unsafe { std::slice::from_raw_parts(place.as_ptr(), len) }
    }
}

impl Drop for Heap {
    fn drop(&mut self) {
        for path in self.paths.get_mut().drain(..) {
            // SAFETY: leaked in `keep_path`, given back once; nothing borrows from a heap that is dropped.
            drop(unsafe { Box::from_raw(path.as_ptr()) });
        }
    }
}
