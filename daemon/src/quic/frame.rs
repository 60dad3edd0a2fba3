//! Reading whole frames from a stream.

use quinn::{ReadExactError, RecvStream};
use shoal_proto::wire::{FRAME_HEADER_BYTES, WireError, body_bytes};

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    /// The peer sent what no peer of this version sends.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The stream or its connection ended.
    #[error(transparent)]
    Stream(#[from] ReadExactError),
}

/// Reads the body of the next frame into `body`, whose former content is lost. No room is made for a body before its
/// length was checked.
pub(super) async fn read_body(stream: &mut RecvStream, body: &mut Vec<u8>) -> Result<(), FrameError> {
    let mut header = [0; FRAME_HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    body.clear();
    body.resize(body_bytes(header)?, 0);
    stream.read_exact(body).await?;
    Ok(())
}
