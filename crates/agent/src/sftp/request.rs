//! Parses requests of SFTP clients.

/// A packet that cannot be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Malformed;

/// The rest of a packet; every method takes a part off its front.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(*taken)
    }

    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn string(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// A handle as we give them out: four bytes.
    pub fn handle(&mut self) -> Result<u32, Malformed> {
        let bytes = self.string()?;
        // One of another length is none of ours, hence not open: that is for the answer to say.
        Ok(bytes.try_into().map_or(u32::MAX, u32::from_be_bytes))
    }

    fn wanted(&mut self) -> Result<SetAttributes, Malformed> {
        const SIZE: u32 = 1;
        const OWNER: u32 = 2;
        const PERMISSIONS: u32 = 4;
        const TIMES: u32 = 8;
        let flags = self.u32()?;
        let mut wanted = SetAttributes::default();
        if flags & SIZE != 0 {
            wanted.size = Some(self.u64()?);
        }
        if flags & OWNER != 0 {
            wanted.owner = Some((self.u32()?, self.u32()?));
        }
        if flags & PERMISSIONS != 0 {
            wanted.permissions = Some(self.u32()? & 0o7777);
        }
        if flags & TIMES != 0 {
            wanted.times = Some((self.u32()?, self.u32()?));
        }
        // Extended attributes would follow; nobody sends any, and what they mean is not known.
        Ok(wanted)
    }
}

/// Attributes to set, those that are present.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct SetAttributes {
    pub size: Option<u64>,
    pub owner: Option<(u32, u32)>,
    pub permissions: Option<u32>,
    /// Access and modification.
    pub times: Option<(u32, u32)>,
}

/// How to open a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OpenFlags(u32);

impl OpenFlags {
    pub fn read(self) -> bool {
        self.0 & 1 != 0
    }

    pub fn write(self) -> bool {
        self.0 & 2 != 0
    }

    pub fn append(self) -> bool {
        self.0 & 4 != 0
    }

    pub fn create(self) -> bool {
        self.0 & 8 != 0
    }

    pub fn truncate(self) -> bool {
        self.0 & 16 != 0
    }

    pub fn exclusive(self) -> bool {
        self.0 & 32 != 0
    }
}

/// A request; names and data borrow from the input buffer.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request<'a> {
    Open {
        path: &'a [u8],
        flags: OpenFlags,
        wanted: SetAttributes,
    },
    Close {
        handle: u32,
    },
    Read {
        handle: u32,
        offset: u64,
        length: u32,
    },
    Write {
        handle: u32,
        offset: u64,
        data: &'a [u8],
    },
    LinkStat {
        path: &'a [u8],
    },
    HandleStat {
        handle: u32,
    },
    SetStat {
        path: &'a [u8],
        wanted: SetAttributes,
    },
    HandleSetStat {
        handle: u32,
        wanted: SetAttributes,
    },
    LinkSetStat {
        path: &'a [u8],
        wanted: SetAttributes,
    },
    OpenDirectory {
        path: &'a [u8],
    },
    ReadDirectory {
        handle: u32,
    },
    Remove {
        path: &'a [u8],
    },
    MakeDirectory {
        path: &'a [u8],
        wanted: SetAttributes,
    },
    RemoveDirectory {
        path: &'a [u8],
    },
    RealPath {
        path: &'a [u8],
    },
    Stat {
        path: &'a [u8],
    },
    Rename {
        from: &'a [u8],
        to: &'a [u8],
    },
    ReadLink {
        path: &'a [u8],
    },
    /// The other way round than the specification says, as OpenSSH and everybody after it sends it.
    SymbolicLink {
        target: &'a [u8],
        path: &'a [u8],
    },
    PosixRename {
        from: &'a [u8],
        to: &'a [u8],
    },
    HardLink {
        from: &'a [u8],
        to: &'a [u8],
    },
    Sync {
        handle: u32,
    },
    FileSystem {
        path: &'a [u8],
    },
    HandleFileSystem {
        handle: u32,
    },
    Limits,
    ExpandPath {
        path: &'a [u8],
    },
    HomeDirectory {
        user: &'a [u8],
    },
    NamesById {
        users: &'a [u8],
        groups: &'a [u8],
    },
    CopyData {
        from: u32,
        from_offset: u64,
        length: u64,
        to: u32,
        to_offset: u64,
    },
    Unknown,
}

impl<'a> Request<'a> {
    /// Reads a packet of the given kind, after its id.
    pub fn parse(kind: u8, mut rest: Reader<'a>) -> Result<Self, Malformed> {
        let r = &mut rest;
        Ok(match kind {
            3 => Self::Open { path: r.string()?, flags: OpenFlags(r.u32()?), wanted: r.wanted()? },
            4 => Self::Close { handle: r.handle()? },
            5 => Self::Read { handle: r.handle()?, offset: r.u64()?, length: r.u32()? },
            6 => Self::Write { handle: r.handle()?, offset: r.u64()?, data: r.string()? },
            7 => Self::LinkStat { path: r.string()? },
            8 => Self::HandleStat { handle: r.handle()? },
            9 => Self::SetStat { path: r.string()?, wanted: r.wanted()? },
            10 => Self::HandleSetStat { handle: r.handle()?, wanted: r.wanted()? },
            11 => Self::OpenDirectory { path: r.string()? },
            12 => Self::ReadDirectory { handle: r.handle()? },
            13 => Self::Remove { path: r.string()? },
            14 => Self::MakeDirectory { path: r.string()?, wanted: r.wanted()? },
            15 => Self::RemoveDirectory { path: r.string()? },
            16 => Self::RealPath { path: r.string()? },
            17 => Self::Stat { path: r.string()? },
            18 => Self::Rename { from: r.string()?, to: r.string()? },
            19 => Self::ReadLink { path: r.string()? },
            20 => Self::SymbolicLink { target: r.string()?, path: r.string()? },
            200 => Self::extended(r)?,
            _ => Self::Unknown,
        })
    }

    fn extended(r: &mut Reader<'a>) -> Result<Self, Malformed> {
        Ok(match r.string()? {
            b"posix-rename@openssh.com" => Self::PosixRename { from: r.string()?, to: r.string()? },
            b"hardlink@openssh.com" => Self::HardLink { from: r.string()?, to: r.string()? },
            b"fsync@openssh.com" => Self::Sync { handle: r.handle()? },
            b"statvfs@openssh.com" => Self::FileSystem { path: r.string()? },
            b"fstatvfs@openssh.com" => Self::HandleFileSystem { handle: r.handle()? },
            b"lsetstat@openssh.com" => Self::LinkSetStat { path: r.string()?, wanted: r.wanted()? },
            b"limits@openssh.com" => Self::Limits,
            b"expand-path@openssh.com" => Self::ExpandPath { path: r.string()? },
            b"home-directory" => Self::HomeDirectory { user: r.string()? },
            b"users-groups-by-id@openssh.com" => {
                Self::NamesById { users: r.string()?, groups: r.string()? }
            }
            b"copy-data" => Self::CopyData {
                from: r.handle()?,
                from_offset: r.u64()?,
                length: r.u64()?,
                to: r.handle()?,
                to_offset: r.u64()?,
            },
            _ => Self::Unknown,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_are_those_whose_flags_are_set() {
        let mut bytes = 5u32.to_be_bytes().to_vec();
        bytes.extend(7u64.to_be_bytes());
        bytes.extend(0o100_644u32.to_be_bytes());
        let wanted = Reader(&bytes).wanted().unwrap();
        assert_eq!(
            wanted,
            SetAttributes { size: Some(7), permissions: Some(0o644), ..SetAttributes::default() }
        );
    }

    #[test]
    fn a_length_beyond_the_packet_is_malformed() {
        assert_eq!(Reader(&[0xff; 6]).string(), Err(Malformed));
        assert!(Request::parse(6, Reader(&[0, 0, 0, 4, 0, 0])).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_packets_never_panic(kind: u8, bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Request::parse(kind, Reader(&bytes));
        }

        #[test]
        fn a_string_comes_back_and_leaves_the_rest(text: Vec<u8>, rest: Vec<u8>) {
            let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
            bytes.extend(&text);
            bytes.extend(&rest);
            let mut reader = Reader(&bytes);
            prop_assert_eq!(reader.string().unwrap(), &text[..]);
            prop_assert_eq!(reader.0, &rest[..]);
        }
    }
}
