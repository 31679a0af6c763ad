//! Deliberate defects, to prove that the simulator's checks can fail. Only with the feature `sabotage`, which nothing
//! but the simulator turns on; without it [`on`] is always false and compiles to nothing.

/// A defect. Each breaks one promise of docs/architecture.md.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sabotage {
    /// A primary acknowledges a write before the secondaries have it.
    AckBeforeSecondaries,
    /// Journals report writes done before they are durable.
    AckBeforeDurable,
    /// A secondary takes forwards of an older epoch than it knows.
    SkipEpochCheck,
    /// A new primary serves at once, without levelling the tails.
    ForgetReconciliation,
    /// Filling a learner does not keep client writes off the range being copied.
    FillWithoutLock,
    /// A returned replica is not sent the last range that was written while it was away.
    CatchUpForgetsUnit,
    /// What a returned replica stored and nobody committed stays there.
    CatchUpIgnoresTail,
    /// Primaries take writes under revoked and overtaken leases.
    IgnoreRevocation,
    /// Clients trust their leases for ever.
    TrustOldLeases,
    /// A lost lease may be gone on with whoever wrote since.
    ReclaimAnyway,
    /// A client keeps cached blocks of a file that others may have changed.
    KeepStaleCache,
    /// A client's own writes leave its cached blocks as they are.
    CacheIgnoresWrites,
    /// A chunk server takes what its disk returns for what it wrote, and makes new checksums for it.
    TrustDisk,
    /// Journals replay records whose payload is not what its checksum says.
    ReplayTornRecords,
    /// Writes count as committed when they begin.
    EarlyWatermark,
    /// A new primary levels its own tail and not those of the others.
    ForgetOthersTails,
    /// A learner joins though nothing was copied to it.
    JoinUnfilled,
    /// Reads see writes that not all replicas have.
    DirtyReads,
    /// The leases of a session that fell silent are not revoked.
    KeepSilentLeases,
    /// Sets are changed though the epoch has moved on since the change was asked for.
    StaleSetChanges,
    /// What a lost map page described counts as holes.
    LostBlocksAreHoles,
    /// A removed metadata server ends itself though its vote may be needed.
    LeaveAtOnce,
    /// `fsync` and `close` are answered though gathered writes are not on their way yet.
    SyncLeavesGathered,
    /// A client writes to chunks that other files are made of too.
    WriteToShared,
    /// A client that stood still for a clone goes on with the chunks it knew.
    KeepMapsOfClone,
    /// A chunk server writes into units that other chunks name too.
    KeepSharedUnits,
}

impl Sabotage {
    pub const ALL: [(&str, Sabotage); 26] = [
        ("ack-before-secondaries", Sabotage::AckBeforeSecondaries),
        ("ack-before-durable", Sabotage::AckBeforeDurable),
        ("skip-epoch-check", Sabotage::SkipEpochCheck),
        ("forget-reconciliation", Sabotage::ForgetReconciliation),
        ("fill-without-lock", Sabotage::FillWithoutLock),
        ("catch-up-forgets-unit", Sabotage::CatchUpForgetsUnit),
        ("catch-up-ignores-tail", Sabotage::CatchUpIgnoresTail),
        ("ignore-revocation", Sabotage::IgnoreRevocation),
        ("trust-old-leases", Sabotage::TrustOldLeases),
        ("reclaim-anyway", Sabotage::ReclaimAnyway),
        ("keep-stale-cache", Sabotage::KeepStaleCache),
        ("cache-ignores-writes", Sabotage::CacheIgnoresWrites),
        ("trust-disk", Sabotage::TrustDisk),
        ("replay-torn-records", Sabotage::ReplayTornRecords),
        ("early-watermark", Sabotage::EarlyWatermark),
        ("forget-others-tails", Sabotage::ForgetOthersTails),
        ("join-unfilled", Sabotage::JoinUnfilled),
        ("dirty-reads", Sabotage::DirtyReads),
        ("keep-silent-leases", Sabotage::KeepSilentLeases),
        ("stale-set-changes", Sabotage::StaleSetChanges),
        ("lost-blocks-are-holes", Sabotage::LostBlocksAreHoles),
        ("leave-at-once", Sabotage::LeaveAtOnce),
        ("sync-leaves-gathered", Sabotage::SyncLeavesGathered),
        ("write-to-shared", Sabotage::WriteToShared),
        ("keep-maps-of-clone", Sabotage::KeepMapsOfClone),
        ("keep-shared-units", Sabotage::KeepSharedUnits),
    ];

    pub fn by_name(name: &str) -> Option<Sabotage> {
        Self::ALL.into_iter().find(|(n, _)| *n == name).map(|(_, defect)| defect)
    }
}

#[cfg(feature = "sabotage")]
mod chosen {
    use super::Sabotage;
    use std::cell::Cell;

    thread_local! {
        static CHOSEN: Cell<Option<Sabotage>> = const { Cell::new(None) };
    }

    /// Chooses the defect of this thread: a simulated world runs on one.
    pub fn choose(defect: Option<Sabotage>) {
        CHOSEN.set(defect);
    }

    pub fn on(defect: Sabotage) -> bool {
        CHOSEN.get() == Some(defect)
    }
}

#[cfg(feature = "sabotage")]
pub use chosen::{choose, on};

/// Whether this defect is wanted here.
#[cfg(not(feature = "sabotage"))]
#[inline(always)]
pub const fn on(_: Sabotage) -> bool {
    false
}
