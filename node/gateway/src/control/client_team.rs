//! What commands ask about the team.

use tvix_node_protocol::control::{
    InviteRequest, Invited, JoinRequest, Joined, MemberName, OwnerAnswer, OwnerQuestion, PeerView,
    RenewRequest, TeamView,
};

use super::client::ControlClient;
use super::client_error::ClientError;
use super::route::Route;
use super::stream::RequestBody;

impl ControlClient {
    /// Makes a ticket for one new member; founds the team where there is none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn invite(&self, request: &InviteRequest) -> Result<Invited, ClientError> {
        self.ask_with(&Route::Invite, request).await
    }

    /// Redeems a ticket.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn join(&self, request: &JoinRequest) -> Result<Joined, ClientError> {
        self.ask_with(&Route::Join, request).await
    }

    /// Who is in the team.
    ///
    /// # Errors
    /// See [`ClientError`]; a node without a team says so.
    pub async fn team(&self) -> Result<TeamView, ClientError> {
        self.ask(&Route::Team, RequestBody::empty()).await
    }

    /// Members that the node is connected with.
    ///
    /// # Errors
    /// See [`ClientError`]; a node without a team says so.
    pub async fn peers(&self) -> Result<Vec<PeerView>, ClientError> {
        self.ask(&Route::Peers, RequestBody::empty()).await
    }

    /// Puts a member out of the team for good.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke(&self, member: &MemberName) -> Result<(), ClientError> {
        self.done_with(&Route::Revoke, member).await
    }

    /// Vouches for a member anew.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn renew(&self, request: &RenewRequest) -> Result<(), ClientError> {
        self.done_with(&Route::Renew, request).await
    }

    /// Asks or tells what the owner of the node decides.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn ask_owner(&self, question: &OwnerQuestion) -> Result<OwnerAnswer, ClientError> {
        self.ask_with(&Route::Owner, question).await
    }

    /// Leaves the team for good.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leave(&self) -> Result<(), ClientError> {
        self.done(&Route::Leave, RequestBody::empty()).await
    }
}
