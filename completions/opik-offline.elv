
use builtin;
use str;

set edit:completion:arg-completer[opik-offline] = {|@words|
    fn spaces {|n|
        builtin:repeat $n ' ' | str:join ''
    }
    fn cand {|text desc|
        edit:complex-candidate $text &display=$text' '(spaces (- 14 (wcswidth $text)))$desc
    }
    var command = 'opik-offline'
    for word $words[1..-1] {
        if (str:has-prefix $word '-') {
            break
        }
        set command = $command';'$word
    }
    var completions = [
        &'opik-offline'= {
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --fleet 'Use this depot of the fleet, such as s3://BUCKET/PREFIX, where copies of stored messages outlive their machine'
            cand --format 'Write results in this format'
            cand --fleet-insecure 'Reach the depot of the fleet without TLS, and not only on this machine'
            cand -q 'Print only the requested result and errors'
            cand --quiet 'Print only the requested result and errors'
            cand -v 'Log more to standard error'
            cand --verbose 'Log more to standard error'
            cand --no-color 'Disable colours, like NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
            cand -V 'Print version'
            cand --version 'Print version'
            cand agent 'Run the agent: forward, store while the server is down, deliver afterwards'
            cand healthcheck 'Check the configuration, the Opik server, access to it, the store and its disk'
            cand status 'Show the connection, the agent and what is stored'
            cand replay 'Deliver stored messages to the Opik server'
            cand inspect 'List stored messages, or show one in full'
            cand purge 'Delete stored messages permanently'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'opik-offline;agent'= {
            cand --listen 'Listen on this address [default: 127.0.0.1:6745]'
            cand --allowed-hosts 'Accept requests for these hosts and from web pages of these origins [default: none]'
            cand --hub-token-file 'Send the token in this file to the hub, if --upstream is a hub'
            cand --batch-size 'Replay this many messages, then pause; if unset, replay starts at 50 and speeds up while the server keeps up'
            cand --delay 'Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up'
            cand --max-size 'Limit the store to this size [default: 10GiB]'
            cand --free-disk-reserve 'Leave this much disk space free; if unset, a tenth of a small disk [default: 256MiB]'
            cand --when-full 'When the store is full: refuse or drop_oldest [default: refuse]'
            cand --rejected-share 'When space is needed, drop the oldest rejected messages beyond this percentage of the store [default: 25]'
            cand --rejected-export 'Write rejected messages to this directory as JSON lines before they are dropped to free space [default: none]'
            cand --max-age 'Drop messages that are older than this [default: none]'
            cand --max-attempts 'Reject a message that failed on its own this many times [default: 10]'
            cand --max-body-size 'Stream bodies larger than this as sent instead of storing them [default: 500MiB]'
            cand --max-inflated-size 'Stream bodies larger than this when decoded instead of storing them [default: 512MiB]'
            cand --max-attachment-size 'Refuse attachments larger than this [default: 5GiB]'
            cand --max-connections 'Limit concurrent client connections; beyond it the longest idle one is closed [default: 4096]'
            cand --memory-budget 'Limit the memory for bodies of clients and replay; if unset, 256MiB, or less in a small container'
            cand --client-timeout 'Close client connections that are idle for this long [default: 2m]'
            cand --client-cert-file 'Present this client certificate (PEM) to the server, for mTLS'
            cand --client-key-file 'Private key of that certificate, unless it is in the same file'
            cand --upstream-headers-file 'Send the headers in this file to the server, one `Name: value` per line'
            cand --connect-timeout 'Timeout for connecting to the server [default: 5s]'
            cand --forward-timeout 'Store a write if the server has not answered within this time [default: 1m35s]'
            cand --retry-interval 'Retry a held lane after this long: its key is invalid, the server redirects or fails every request [default: 10s]'
            cand --shutdown-timeout 'Give requests in flight this long to finish when stopping [default: 10s]'
            cand --flush-timeout 'Deliver for at most this long after the command has ended [default: 30s]'
            cand --log-format 'Log format: text or json [default: text]'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --fleet 'Use this depot of the fleet, such as s3://BUCKET/PREFIX, where copies of stored messages outlive their machine'
            cand --format 'Write results in this format'
            cand --insecure-listen 'Listen beyond this machine without requiring an intake token'
            cand --hub 'Be a hub: other agents use this one as their --upstream'
            cand --adopt-orphans 'Salvage and deliver what killed Python processes leave behind'
            cand --rekey-refused 'Use the configured key for messages whose key the server rejects (401, 403), for the same server and workspace'
            cand --all-otlp-traces 'Route all OTLP traces of the command to Opik, not only those that already went there'
            cand --fleet-insecure 'Reach the depot of the fleet without TLS, and not only on this machine'
            cand -q 'Print only the requested result and errors'
            cand --quiet 'Print only the requested result and errors'
            cand -v 'Log more to standard error'
            cand --verbose 'Log more to standard error'
            cand --no-color 'Disable colours, like NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;healthcheck'= {
            cand --wait 'Retry for up to this long until all checks pass'
            cand --project-name 'Project that the smoke test writes to'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --fleet 'Use this depot of the fleet, such as s3://BUCKET/PREFIX, where copies of stored messages outlive their machine'
            cand --format 'Write results in this format'
            cand --full 'Check every page of the store even if it is large, which takes about 20 seconds per gigabyte'
            cand --smoke-test 'Write a trace with a span and an image to the server and read it back, if all checks pass'
            cand --reseal 'Re-encrypt or decrypt the store to match the settings, and scrub old data; makes no network requests'
            cand --fleet-insecure 'Reach the depot of the fleet without TLS, and not only on this machine'
            cand -q 'Print only the requested result and errors'
            cand --quiet 'Print only the requested result and errors'
            cand -v 'Log more to standard error'
            cand --verbose 'Log more to standard error'
            cand --no-color 'Disable colours, like NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;status'= {
            cand --fail-if-backlog 'Exit with 4 when more than this many messages wait'
            cand --fail-if-older-than 'Exit with 4 when a message has been waiting longer than this'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --fleet 'Use this depot of the fleet, such as s3://BUCKET/PREFIX, where copies of stored messages outlive their machine'
            cand --format 'Write results in this format'
            cand --watch 'Show it again every 2 seconds until interrupted'
            cand --fleet-insecure 'Reach the depot of the fleet without TLS, and not only on this machine'
            cand -q 'Print only the requested result and errors'
            cand --quiet 'Print only the requested result and errors'
            cand -v 'Log more to standard error'
            cand --verbose 'Log more to standard error'
            cand --no-color 'Disable colours, like NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;replay'= {
            cand --batch-size 'Replay this many messages, then pause'
            cand --delay 'Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up'
            cand --limit 'Stop after this many messages'
            cand --timeout 'Keep retrying for up to this long, then stop'
            cand --verify-timeout 'Retry reading what the server does not show yet, for up to this long after the delivery'
            cand --from 'Take in what a Python process left behind, or another store, then deliver'
            cand --owner 'As root, salvage the files of this user (name or number)'
            cand --attachments-from 'Also send attachments whose files are in this directory'
            cand --to 'Write a sealed copy of the store to FILE, and send nothing'
            cand --recipient 'Seal the copy for this public key, `age1...`'
            cand --recipients-file 'Seal the copy for the public keys in this file, one a line'
            cand --identity 'Open sealed copies of --from with the secret key in this file'
            cand --make-identity 'Make a key pair: write the secret key to KEYFILE, and print the public key for --recipient'
            cand --status 'Only messages with this status (may be given more than once)'
            cand --type 'Only messages of this type, such as OtlpTraces'
            cand --workspace 'Only messages of this workspace'
            cand --server 'Only messages for this server (the URL that `status` shows)'
            cand --project 'Only messages that name this project'
            cand --id 'Only the message with this id'
            cand --trace 'Only messages about this trace or its spans'
            cand --older-than 'Only messages older than this, such as 2h or 7d'
            cand --newer-than 'Only messages accepted within this time, such as 15m'
            cand --readdress 'Deliver messages for this server to --upstream instead'
            cand --lane 'With --rekey or --readdress: only this lane, by its number in --dry-run'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --fleet 'Use this depot of the fleet, such as s3://BUCKET/PREFIX, where copies of stored messages outlive their machine'
            cand --format 'Write results in this format'
            cand --verify 'Read delivered data back, and report what is missing'
            cand --remove-source 'Delete each file of --from, and the SDK''s temporary copies of attachments, once all its messages are stored'
            cand --dry-run 'Show what would be replayed, without sending anything'
            cand --rejected 'Only rejected messages (--status rejected)'
            cand --rekey 'Use the configured key for lanes whose key the server rejects'
            cand -y 'With --rekey or --readdress: don''t ask for confirmation'
            cand --yes 'With --rekey or --readdress: don''t ask for confirmation'
            cand --fleet-insecure 'Reach the depot of the fleet without TLS, and not only on this machine'
            cand -q 'Print only the requested result and errors'
            cand --quiet 'Print only the requested result and errors'
            cand -v 'Log more to standard error'
            cand --verbose 'Log more to standard error'
            cand --no-color 'Disable colours, like NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;inspect'= {
            cand --from 'List what a Python process left behind in this file'
            cand --owner 'As root, read a file of this user (name or number)'
            cand --limit 'List at most this many messages; 0 lists all [default: 50]'
            cand --status 'Only messages with this status (may be given more than once)'
            cand --type 'Only messages of this type, such as OtlpTraces'
            cand --workspace 'Only messages of this workspace'
            cand --server 'Only messages for this server (the URL that `status` shows)'
            cand --project 'Only messages that name this project'
            cand --id 'Only the message with this id'
            cand --trace 'Only messages about this trace or its spans'
            cand --older-than 'Only messages older than this, such as 2h or 7d'
            cand --newer-than 'Only messages accepted within this time, such as 15m'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --fleet 'Use this depot of the fleet, such as s3://BUCKET/PREFIX, where copies of stored messages outlive their machine'
            cand --format 'Write results in this format'
            cand --newest 'List the newest messages first'
            cand --follow 'Show new messages as they are stored'
            cand --no-pager 'Show long results without a pager'
            cand --rejected 'Only rejected messages (--status rejected)'
            cand --fleet-insecure 'Reach the depot of the fleet without TLS, and not only on this machine'
            cand -q 'Print only the requested result and errors'
            cand --quiet 'Print only the requested result and errors'
            cand -v 'Log more to standard error'
            cand --verbose 'Log more to standard error'
            cand --no-color 'Disable colours, like NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;purge'= {
            cand --status 'Only messages with this status (may be given more than once)'
            cand --type 'Only messages of this type, such as OtlpTraces'
            cand --workspace 'Only messages of this workspace'
            cand --server 'Only messages for this server (the URL that `status` shows)'
            cand --project 'Only messages that name this project'
            cand --id 'Only the message with this id'
            cand --trace 'Only messages about this trace or its spans'
            cand --older-than 'Only messages older than this, such as 2h or 7d'
            cand --newer-than 'Only messages accepted within this time, such as 15m'
            cand --db 'Use this message store'
            cand --upstream 'Use this Opik server, such as http://127.0.0.1:5173/api'
            cand --fleet 'Use this depot of the fleet, such as s3://BUCKET/PREFIX, where copies of stored messages outlive their machine'
            cand --format 'Write results in this format'
            cand --dry-run 'Show what would be deleted, and delete nothing'
            cand -y 'Delete without asking'
            cand --yes 'Delete without asking'
            cand --rejected 'Only rejected messages (--status rejected)'
            cand --fleet-insecure 'Reach the depot of the fleet without TLS, and not only on this machine'
            cand -q 'Print only the requested result and errors'
            cand --quiet 'Print only the requested result and errors'
            cand -v 'Log more to standard error'
            cand --verbose 'Log more to standard error'
            cand --no-color 'Disable colours, like NO_COLOR in the environment'
            cand -h 'Print help (see more with ''--help'')'
            cand --help 'Print help (see more with ''--help'')'
        }
        &'opik-offline;help'= {
            cand agent 'Run the agent: forward, store while the server is down, deliver afterwards'
            cand healthcheck 'Check the configuration, the Opik server, access to it, the store and its disk'
            cand status 'Show the connection, the agent and what is stored'
            cand replay 'Deliver stored messages to the Opik server'
            cand inspect 'List stored messages, or show one in full'
            cand purge 'Delete stored messages permanently'
            cand help 'Print this message or the help of the given subcommand(s)'
        }
        &'opik-offline;help;agent'= {
        }
        &'opik-offline;help;healthcheck'= {
        }
        &'opik-offline;help;status'= {
        }
        &'opik-offline;help;replay'= {
        }
        &'opik-offline;help;inspect'= {
        }
        &'opik-offline;help;purge'= {
        }
        &'opik-offline;help;help'= {
        }
    ]
    $completions[$command]
}
