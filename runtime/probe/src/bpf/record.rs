//! The records of the kernel's side: layout and reading.
//!
//! The layout is that of `ebpf/record.h`; a test compares every field with the objects' BTF. Input: bytes of a ring. Output: borrowed fields.
//! A record that is not exactly as it should be is refused as a whole.

use std::marker::PhantomData;

/// A field of a structure: where it begins.
#[derive(Clone, Copy, Debug)]
pub struct Field<T> {
    at: usize,
    kind: PhantomData<T>,
}

impl<T> Field<T> {
    const fn at(at: usize) -> Self {
        Field { at, kind: PhantomData }
    }
}

/// Numbers that a field may hold.
trait Number: Sized {
    fn read(bytes: &[u8], at: usize) -> Option<Self>;
}

macro_rules! number {
    ($($name:ty),*) => {$(
        impl Number for $name {
            fn read(bytes: &[u8], at: usize) -> Option<Self> {
                let bytes = bytes.get(at..at + size_of::<$name>())?;
                Some(<$name>::from_le_bytes(bytes.try_into().ok()?))
            }
        }
    )*};
}
number!(u16, u32, i32, u64);

/// Structures as the kernel's side has them, and a table of their fields for the test.
macro_rules! layout {
    ($($structure:ident { $($field:ident: $kind:ty = $at:literal),* $(,)? })*) => {
        $(
            #[allow(missing_docs, non_upper_case_globals)]
            pub mod $structure {
                use super::Field;
                $(pub const $field: Field<$kind> = Field::at($at);)*
            }
        )*
        /// Structure, field, offset, size.
        #[cfg(test)]
        pub const LAYOUT: &[(&str, &str, usize, usize)] =
            &[$($((stringify!($structure), stringify!($field), $at, size_of::<$kind>())),*),*];
    };
}

layout! {
    header {
        size: u32 = 0, kind: u16 = 4, call: u16 = 6, time_ns: u64 = 8, sandbox: u64 = 16, pid: u32 = 24, ppid: u32 = 28, uid: u32 = 32, error: i32 = 36,
        comm: [u8; 16] = 40, text_bytes: [u16; 4] = 56, text_how: [u8; 4] = 64,
    }
    fork_body { child: u32 = 0 }
    exec_body { fileless: u32 = 0, stdin_mode: u32 = 4, stdin_device: u32 = 8, stdin_family: u32 = 12, stdin_listens: u32 = 16, stdin_pipe: u64 = 24, stdout_pipe: u64 = 32 }
    exit_body { status: u32 = 0 }
    socket_body { family: u32 = 0, kind: u32 = 4, protocol: u32 = 8 }
    address_body { family: u32 = 0, port: u32 = 4, ip: [u8; 16] = 8 }
    dns_body { bytes: u32 = 24, is_tcp: u32 = 28 }
    call_body { args: [u8; 48] = 0 }
    lsm_body { hook: u32 = 0, words: [u8; 16] = 8 }
}

/// Bytes of the header.
pub const HEADER_BYTES: usize = 72;
/// Bytes of every body.
pub const BODY_BYTES: usize = 48;
/// Bytes of the smallest record.
pub const RECORD_BYTES: usize = HEADER_BYTES + BODY_BYTES;
/// Texts of one record at most.
pub const TEXTS_MAX: usize = 4;

const TEXT_NAMES: u8 = 2;
const TEXT_CUT: u8 = 0x40;

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Header or body are not complete, or the size is not that of the bytes.
    #[error("its size is wrong")]
    Size,
    /// The kind is not known.
    #[error("kind {0} is unknown")]
    Kind(u16),
    /// The call is none that is recorded.
    #[error("call {0} is none that is recorded")]
    Call(u16),
    /// The hook of the security module is not known.
    #[error("hook {0} is unknown")]
    Hook(u32),
    /// A text reaches past the end or is of an unknown form.
    #[error("text {0} is malformed")]
    Text(usize),
}

/// A text of a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Text<'a> {
    bytes: &'a [u8],
    how: u8,
}

impl<'a> Text<'a> {
    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.how != 0
    }

    /// Whether it was longer.
    pub fn is_cut(&self) -> bool {
        self.how & TEXT_CUT != 0
    }

    /// Its bytes as they are.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Parts that end with NUL each, the last perhaps without.
    pub fn parts(&self) -> impl DoubleEndedIterator<Item = &'a [u8]> + use<'a> {
        let bytes = self.bytes.strip_suffix(b"\0").unwrap_or(self.bytes);
        let is_empty = self.bytes.is_empty();
        bytes.split(|byte| *byte == 0).filter(move |_| !is_empty)
    }

    /// As one text: a string as it is, names as a path.
    pub fn to_text(self) -> String {
        if self.how & 0x3f == TEXT_NAMES { self.path() } else { lossy(self.parts().next().unwrap_or_default()) }
    }

    fn path(self) -> String {
        let mut path = String::new();
        if self.is_cut() {
            // The names nearest to the root are missing.
            path.push_str("...");
        }
        for name in self.parts().rev() {
            if name != b"/" {
                path.push('/');
                path.push_str(&String::from_utf8_lossy(name));
            }
        }
        if path.is_empty() {
            path.push('/');
        }
        path
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    bytes: &'a [u8],
    texts: [Text<'a>; TEXTS_MAX],
}

impl<'a> Record<'a> {
    /// Splits bytes of a ring into their parts.
    pub fn parse(bytes: &'a [u8]) -> Result<Record<'a>, Malformed> {
        let size = u32::read(bytes, header::size.at).ok_or(Malformed::Size)? as usize;
        if size < RECORD_BYTES || size != bytes.len() {
            return Err(Malformed::Size);
        }
        let mut texts = [Text::default(); TEXTS_MAX];
        let mut rest = &bytes[RECORD_BYTES..];
        for (index, text) in texts.iter_mut().enumerate() {
            let wrong = Malformed::Text(index);
            let how = bytes[header::text_how.at + index];
            let length = u16::read(bytes, header::text_bytes.at + 2 * index).ok_or(wrong)? as usize;
            if !matches!(how & 0x3f, 0..=TEXT_NAMES) || (how & 0x3f == 0 && (how != 0 || length != 0)) {
                return Err(wrong);
            }
            let (own, after) = rest.split_at_checked(length).ok_or(wrong)?;
            (*text, rest) = (Text { bytes: own, how }, after);
        }
        if !rest.is_empty() {
            return Err(Malformed::Size);
        }
        Ok(Record { bytes, texts })
    }

    /// A number of the header.
    #[allow(private_bounds)]
    pub fn head<T: Number>(&self, field: Field<T>) -> T {
        T::read(self.bytes, field.at).expect("a parsed record has its header")
    }

    /// A number of the body.
    #[allow(private_bounds)]
    pub fn body<T: Number>(&self, field: Field<T>) -> T {
        T::read(self.bytes, HEADER_BYTES + field.at).expect("a parsed record has its body")
    }

    /// Bytes of the body.
    pub fn body_bytes<const N: usize>(&self, field: Field<[u8; N]>) -> [u8; N] {
        let start = HEADER_BYTES + field.at;
        self.bytes[start..start + N].try_into().expect("a parsed record has its body")
    }

    /// Name of the process.
    pub fn comm(&self) -> String {
        let comm = &self.bytes[header::comm.at..header::comm.at + 16];
        lossy(comm.split(|byte| *byte == 0).next().unwrap_or_default())
    }

    /// A text; [`Text::is_some`] tells whether there is one.
    pub fn text(&self, index: usize) -> Text<'a> {
        self.texts.get(index).copied().unwrap_or_default()
    }
}

/// A text of raw bytes, for the tests of what reads records.
#[cfg(test)]
pub const RAW: u8 = 1;
/// A text of names, likewise.
#[cfg(test)]
pub const NAMES: u8 = TEXT_NAMES;

/// Bytes of a record, for tests.
#[cfg(test)]
pub fn bytes_of(kind: u16, body: &[u32], texts: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_BYTES];
    let put = |bytes: &mut Vec<u8>, at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(&mut bytes, header::kind.at, &kind.to_le_bytes());
    put(&mut bytes, header::time_ns.at, &5u64.to_le_bytes());
    put(&mut bytes, header::sandbox.at, &77u64.to_le_bytes());
    put(&mut bytes, header::pid.at, &12u32.to_le_bytes());
    put(&mut bytes, header::ppid.at, &11u32.to_le_bytes());
    put(&mut bytes, header::uid.at, &1000u32.to_le_bytes());
    put(&mut bytes, header::comm.at, b"job\0");
    for (index, word) in body.iter().enumerate() {
        put(&mut bytes, HEADER_BYTES + 4 * index, &word.to_le_bytes());
    }
    for (index, (how, text)) in texts.iter().enumerate() {
        bytes[header::text_how.at + index] = *how;
        let length = u16::try_from(text.len()).expect("test texts are short");
        put(&mut bytes, header::text_bytes.at + 2 * index, &length.to_le_bytes());
        bytes.extend_from_slice(text);
    }
    let size = u32::try_from(bytes.len()).expect("test records are short");
    put(&mut bytes, header::size.at, &size.to_le_bytes());
    bytes
}

/// Bytes of a record of a call, likewise.
#[cfg(test)]
pub fn bytes_of_call(index: u16, args: [u64; 6], texts: &[(u8, &[u8])]) -> Vec<u8> {
    let mut bytes = bytes_of(20, &[], texts);
    bytes[header::call.at..header::call.at + 2].copy_from_slice(&index.to_le_bytes());
    bytes[HEADER_BYTES..RECORD_BYTES].copy_from_slice(&args.map(u64::to_le_bytes).concat());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The types of an object, from its section `.BTF` (ELF, 64 bits, little-endian).
    fn types(object: &[u8]) -> &[u8] {
        let number = |at: usize, bytes: usize| {
            object[at..at + bytes].iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte))
        };
        let (table, entry, count, names) = (number(0x28, 8), number(0x3a, 2), number(0x3c, 2), number(0x3e, 2));
        let section = |index: usize| {
            let at = table + index * entry;
            (number(at, 4), number(at + 0x18, 8), number(at + 0x20, 8))
        };
        let names = section(names).1;
        let own = |index: &usize| object[names + section(*index).0..].starts_with(b".BTF\0");
        let (_, start, length) = section((0..count).find(own).expect("every object has its types"));
        &object[start..start + length]
    }

    const OBJECTS: [&[u8]; 6] = [
        include_bytes!("../../../../ebpf/prebuilt/process.bpf.o"),
        include_bytes!("../../../../ebpf/prebuilt/network.bpf.o"),
        include_bytes!("../../../../ebpf/prebuilt/syscall.bpf.o"),
        include_bytes!("../../../../ebpf/prebuilt/file.bpf.o"),
        include_bytes!("../../../../ebpf/prebuilt/privilege.bpf.o"),
        include_bytes!("../../../../ebpf/prebuilt/lsm.bpf.o"),
    ];

    #[test]
    fn the_layout_is_that_of_every_object() {
        use super::super::btf::{member, size_of_structure};
        for object in OBJECTS {
            let types = types(object);
            for (structure, field, at, size) in LAYOUT {
                assert_eq!(member(types, structure, field), Some((*at, *size)), "{structure}.{field}");
            }
            let sizes = [("header", HEADER_BYTES), ("body", BODY_BYTES), ("record", RECORD_BYTES)];
            // The maps' entries are written as words.
            let entries = [("filter", 4 * 8), ("sandbox", 4 * 8), ("loss_key", 2 * 8)];
            for (structure, size) in sizes.into_iter().chain(entries) {
                assert_eq!(size_of_structure(types, structure), Some(size), "{structure}");
            }
        }
    }

    fn text(how: u8, bytes: &[u8]) -> String {
        let record = bytes_of(1, &[], &[(how, bytes)]);
        Record::parse(&record).expect("well formed").text(0).to_text()
    }

    #[test]
    fn texts_are_read() {
        assert_eq!(text(RAW, b"a/b\0"), "a/b");
        assert_eq!(text(TEXT_NAMES, b"passwd\0etc\0"), "/etc/passwd");
        assert_eq!(text(TEXT_NAMES, b""), "/");
        assert_eq!(text(TEXT_NAMES | TEXT_CUT, b"c\0b\0"), ".../b/c");
        assert_eq!(text(TEXT_NAMES | 0x80, b"memfd:x\0"), "/memfd:x");
        assert_eq!(text(TEXT_NAMES, b"\xff\0etc\0"), "/etc/\u{fffd}");
    }

    #[test]
    fn empty_arguments_are_arguments() {
        let record = bytes_of(2, &[], &[(RAW, b"sh\0\0x\0")]);
        let record = Record::parse(&record).expect("well formed");
        assert_eq!(record.text(0).parts().collect::<Vec<_>>(), [b"sh".as_slice(), b"", b"x"]);
        assert_eq!(record.text(1).parts().count(), 0);
    }

    #[test]
    fn what_is_not_exactly_a_record_is_refused() {
        let good = bytes_of(1, &[9], &[(RAW, b"text\0")]);
        assert!(Record::parse(&good).is_ok());
        for end in 0..good.len() {
            assert!(Record::parse(&good[..end]).is_err(), "cut at {end}");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert_eq!(Record::parse(&longer).expect_err("too long"), Malformed::Size);
        let mut odd = good.clone();
        odd[header::text_how.at] = 3;
        assert_eq!(Record::parse(&odd).expect_err("unknown form"), Malformed::Text(0));
        let mut absent = good.clone();
        absent[header::text_how.at] = 0;
        assert_eq!(Record::parse(&absent).expect_err("bytes of no text"), Malformed::Text(0));
        let mut far = good;
        far[header::text_bytes.at + 1] = 0xff;
        assert_eq!(Record::parse(&far).expect_err("past the end"), Malformed::Text(0));
    }
}
