//! What commands ask about the team.

use tvix_node_protocol::control::{
    FounderKey, InviteRequest, Invited, JoinRequest, Joined, LeaveRequest, MemberName, OwnerAnswer,
    OwnerQuestion, PeerView, PutOut, RenewRequest, TeamView,
};

use super::client::ControlClient;
use super::client_error::ClientError;
use super::route::Route;
use super::stream::RequestBody;

impl ControlClient {
    /// Makes a ticket for one new member, or for founders; founds the team where there is none.
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

    /// Has the node make a key by which it can be a founder of one team.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn founder_key(&self) -> Result<FounderKey, ClientError> {
        self.ask(&Route::FounderKey, RequestBody::empty()).await
    }

    /// Who is in a team, by its name or id; none: in the only one.
    ///
    /// # Errors
    /// See [`ClientError`]; a node without a team says so.
    pub async fn team(&self, team: Option<&str>) -> Result<TeamView, ClientError> {
        let route = Route::Team(team.map(str::to_owned));
        self.ask(&route, RequestBody::empty()).await
    }

    /// Members that the node is connected with, in a team or in all.
    ///
    /// # Errors
    /// See [`ClientError`]; a node without a team says so.
    pub async fn peers(&self, team: Option<&str>) -> Result<Vec<PeerView>, ClientError> {
        let route = Route::Peers(team.map(str::to_owned));
        self.ask(&route, RequestBody::empty()).await
    }

    /// Puts a member out of the team for good; or says so of a founder, for which it takes several.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn revoke(&self, member: &MemberName) -> Result<PutOut, ClientError> {
        self.ask_with(&Route::Revoke, member).await
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

    /// Leaves a team for good.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn leave(&self, request: &LeaveRequest) -> Result<(), ClientError> {
        self.done_with(&Route::Leave, request).await
    }
}
