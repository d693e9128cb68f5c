//! The protocol of SSH agents, as far as a build may use it: listing keys and signing. Everything else fails.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::keys::KeyRing;

const FAILURE: u8 = 5;
const REQUEST_IDENTITIES: u8 = 11;
const IDENTITIES_ANSWER: u8 = 12;
const SIGN_REQUEST: u8 = 13;
const SIGN_RESPONSE: u8 = 14;
/// Largest message in bytes, as OpenSSH's agent has it.
const MAX_MESSAGE: usize = 256 * 1024;

/// Reads a message; none at the end of the stream.
async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut head = [0; 4];
    match stream.read_exact(&mut head).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let length = u32::from_be_bytes(head) as usize;
    if length == 0 || length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("agent message of {length} bytes")));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(body))
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), body].concat()).await?;
    stream.flush().await
}

/// Passes harmless requests to a real agent until either side is done.
pub(super) async fn proxy_read_only<C, A>(client: &mut C, agent: &mut A) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    A: AsyncRead + AsyncWrite + Unpin,
{
    while let Some(request) = read(client).await? {
        if !matches!(request[0], REQUEST_IDENTITIES | SIGN_REQUEST) {
            write(client, &[FAILURE]).await?;
            continue;
        }
        write(agent, &request).await?;
        let Some(answer) = read(agent).await? else { return Ok(()) };
        write(client, &answer).await?;
    }
    Ok(())
}

/// Answers requests with keys held here until the client is done.
pub(super) async fn serve_keys(client: &mut (impl AsyncRead + AsyncWrite + Unpin), keys: &KeyRing) -> io::Result<()> {
    while let Some(request) = read(client).await? {
        let answer = match request[0] {
            REQUEST_IDENTITIES => Some(identities(keys)),
            SIGN_REQUEST => sign(&request[1..], keys),
            _ => None,
        };
        write(client, answer.as_deref().unwrap_or(&[FAILURE])).await?;
    }
    Ok(())
}

fn put(out: &mut Vec<u8>, text: &[u8]) {
    // Keys, comments and signatures are far below 4 GB.
    out.extend(u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend_from_slice(text);
}

fn take<'a>(data: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (head, rest) = data.split_first_chunk::<4>()?;
    let length = u32::from_be_bytes(*head) as usize;
    let text = rest.get(..length)?;
    *data = &rest[length..];
    Some(text)
}

fn identities(keys: &KeyRing) -> Vec<u8> {
    let list: Vec<_> = keys.public_keys().collect();
    let mut out = vec![IDENTITIES_ANSWER];
    out.extend(u32::try_from(list.len()).unwrap_or(0).to_be_bytes());
    for (blob, comment) in list {
        put(&mut out, blob);
        put(&mut out, comment.as_bytes());
    }
    out
}

fn sign(mut request: &[u8], keys: &KeyRing) -> Option<Vec<u8>> {
    let blob = take(&mut request)?;
    let data = take(&mut request)?;
    let flags = u32::from_be_bytes(*request.first_chunk::<4>()?);
    let signature = keys.sign(blob, data, flags)?;
    let mut out = vec![SIGN_RESPONSE];
    put(&mut out, &signature);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: Vec<u8>) -> Vec<u8> {
        let (mut ours, mut theirs) = tokio::io::duplex(1 << 16);
        let (mut up, mut agent) = tokio::io::duplex(1 << 16);
        let real = async move {
            while let Some(request) = read(&mut agent).await.unwrap() {
                write(&mut agent, &[&[99], request.as_slice()].concat()).await.unwrap();
            }
        };
        let talk = async {
            write(&mut ours, &request).await.unwrap();
            let answer = read(&mut ours).await.unwrap().unwrap();
            drop(ours);
            answer
        };
        let proxy = async move {
            proxy_read_only(&mut theirs, &mut up).await.unwrap();
            drop(up);
        };
        let (answer, (), ()) = tokio::join!(talk, proxy, real);
        answer
    }

    #[tokio::test]
    async fn only_harmless_requests_reach_the_agent() {
        assert_eq!(ask(vec![REQUEST_IDENTITIES]).await, [99, REQUEST_IDENTITIES]);
        assert_eq!(ask(vec![SIGN_REQUEST, 1, 2]).await, [99, SIGN_REQUEST, 1, 2]);
        for kind in [17, 18, 19, 22, 25, 27] {
            assert_eq!(ask(vec![kind, 0]).await, [FAILURE], "{kind}");
        }
    }

    #[tokio::test]
    async fn oversized_messages_end_the_connection() {
        let (mut ours, mut theirs) = tokio::io::duplex(64);
        ours.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
        assert!(read(&mut theirs).await.is_err());
    }
}
