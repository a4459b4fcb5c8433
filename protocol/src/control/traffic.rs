//! How much of the machine's link a node may use.

use serde::{Deserialize, Serialize};

/// How much of the link this node uses for content, and for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrafficTerms {
    /// Bytes of content a second to other members, of all together; none: as fast as the link is.
    pub upload: Option<u64>,
    /// Bytes of content a second from other members, of all together; none: as fast as the link is.
    pub download: Option<u64>,
    /// Every byte costs: nothing is sent to others, stored or built for them but what this node's own builds need.
    pub metered: bool,
}

impl TrafficTerms {
    /// Least bytes of content a second that may be set as a limit. With the 64 streams that may share it each still shows
    /// a sign of life, 64 KiB, every 16 seconds; with less, peers would take the node for gone.
    pub const LEAST_RATE: u64 = 256 << 10;
}
