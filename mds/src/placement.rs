//! Choice of chunk servers for new replicas (signatures first, bodies follow).
use wire::CsId;
use wire::mds_api::ReplicaPolicy;

/// What the master knows about a CS that may take replicas (active, not dropped, above its space margins).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CsView {
    pub cs: CsId,
    pub host_id: [u8; 16],
    /// room.row.rack, or empty.
    pub location: String,
    pub tier: u8,
    pub free_bytes: u64,
    pub total_bytes: u64,
    /// Requests waiting, or any measure that grows with load.
    pub load: u32,
}

/// The choice, and what is not as wished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chosen {
    /// Distinct; between `least` and `count` of them.
    pub cs: Vec<CsId>,
    /// No server of the tier asked for was there; others were taken.
    pub other_tier: bool,
    /// Some share a failure domain, for lack of others.
    pub shared_domain: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PlacementError {
    #[error("Failed to allocate {wanted} replicas: {available} out of {registered} chunk servers are available")]
    TooFew { wanted: usize, available: usize, registered: usize },
}

/// Chooses up to `count` servers and at least `least`; `exclude` (existing replicas) are not taken and their failure
/// domains are avoided. `registered` is only for the message.
pub fn choose(
    candidates: &[CsView],
    policy: &ReplicaPolicy,
    count: usize,
    least: usize,
    exclude: &[CsView],
    registered: usize,
    random: &mut dyn FnMut() -> u64,
) -> Result<Chosen, PlacementError> {
    let _ = (candidates, policy, count, least, exclude, registered, random);
    todo!()
}
