
using namespace System.Management.Automation
using namespace System.Management.Automation.Language

Register-ArgumentCompleter -Native -CommandName 'opik-offline' -ScriptBlock {
    param($wordToComplete, $commandAst, $cursorPosition)

    $commandElements = $commandAst.CommandElements
    $command = @(
        'opik-offline'
        for ($i = 1; $i -lt $commandElements.Count; $i++) {
            $element = $commandElements[$i]
            if ($element -isnot [StringConstantExpressionAst] -or
                $element.StringConstantType -ne [StringConstantType]::BareWord -or
                $element.Value.StartsWith('-') -or
                $element.Value -eq $wordToComplete) {
                break
        }
        $element.Value
    }) -join ';'

    $completions = @(switch ($command) {
        'opik-offline' {
            [CompletionResult]::new('--completions', '--completions', [CompletionResultType]::ParameterName, 'Print what this shell reads to complete commands')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--fleet', '--fleet', [CompletionResultType]::ParameterName, 'Keep copies in this depot, such as s3://BUCKET/PREFIX')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--fleet-insecure', '--fleet-insecure', [CompletionResultType]::ParameterName, 'Reach the depot of the fleet without TLS, and not only on this machine')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Disable colours, like NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('-V', '-V ', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('--version', '--version', [CompletionResultType]::ParameterName, 'Print version')
            [CompletionResult]::new('agent', 'agent', [CompletionResultType]::ParameterValue, 'Run the agent: forward, store while the server is down, deliver afterwards')
            [CompletionResult]::new('healthcheck', 'healthcheck', [CompletionResultType]::ParameterValue, 'Check the configuration, the Opik server, access to it, the store and its disk')
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'Show whether the data is safe, what is wrong and what mends it, and what is stored')
            [CompletionResult]::new('replay', 'replay', [CompletionResultType]::ParameterValue, 'Deliver stored messages to the Opik server')
            [CompletionResult]::new('inspect', 'inspect', [CompletionResultType]::ParameterValue, 'List stored messages, or show one in full')
            [CompletionResult]::new('purge', 'purge', [CompletionResultType]::ParameterValue, 'Delete stored messages permanently')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'opik-offline;agent' {
            [CompletionResult]::new('--idle-exit', '--idle-exit', [CompletionResultType]::ParameterName, 'End when no client is connected and no message waits for this long [default: none]')
            [CompletionResult]::new('--listen', '--listen', [CompletionResultType]::ParameterName, 'Listen on this address [default: 127.0.0.1:6745]')
            [CompletionResult]::new('--allowed-hosts', '--allowed-hosts', [CompletionResultType]::ParameterName, 'Accept requests for these hosts and from web pages of these origins [default: none]')
            [CompletionResult]::new('--hub-token-file', '--hub-token-file', [CompletionResultType]::ParameterName, 'Send the token in this file to the hub, if --upstream is a hub')
            [CompletionResult]::new('--batch-size', '--batch-size', [CompletionResultType]::ParameterName, 'Replay this many messages, then pause; if unset, replay starts at 50 and speeds up while the server keeps up')
            [CompletionResult]::new('--delay', '--delay', [CompletionResultType]::ParameterName, 'Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up')
            [CompletionResult]::new('--max-size', '--max-size', [CompletionResultType]::ParameterName, 'Limit the store to this size [default: 10GiB]')
            [CompletionResult]::new('--free-disk-reserve', '--free-disk-reserve', [CompletionResultType]::ParameterName, 'Leave this much disk space free; if unset, a tenth of a small disk [default: 256MiB]')
            [CompletionResult]::new('--when-full', '--when-full', [CompletionResultType]::ParameterName, 'When the store is full: refuse or drop_oldest [default: refuse]')
            [CompletionResult]::new('--rejected-share', '--rejected-share', [CompletionResultType]::ParameterName, 'When space is needed, drop the oldest rejected messages beyond this percentage of the store [default: 25]')
            [CompletionResult]::new('--rejected-export', '--rejected-export', [CompletionResultType]::ParameterName, 'Write rejected messages to this directory as JSON lines before they are dropped to free space [default: none]')
            [CompletionResult]::new('--acknowledge', '--acknowledge', [CompletionResultType]::ParameterName, 'Acknowledge a stored write after the local commit, or once its copy is in the depot: local or fleet [default: local]')
            [CompletionResult]::new('--when-depot-away', '--when-depot-away', [CompletionResultType]::ParameterName, 'With --acknowledge fleet, while the depot is away: local acknowledges, refuse answers 503 [default: local]')
            [CompletionResult]::new('--fleet-recipients', '--fleet-recipients', [CompletionResultType]::ParameterName, 'Seal copies in the depot for these public keys, separated by commas [default: none]')
            [CompletionResult]::new('--max-age', '--max-age', [CompletionResultType]::ParameterName, 'Drop messages that are older than this [default: none]')
            [CompletionResult]::new('--max-attempts', '--max-attempts', [CompletionResultType]::ParameterName, 'Reject a message that failed on its own this many times [default: 10]')
            [CompletionResult]::new('--max-body-size', '--max-body-size', [CompletionResultType]::ParameterName, 'Stream bodies larger than this as sent instead of storing them [default: 500MiB]')
            [CompletionResult]::new('--max-inflated-size', '--max-inflated-size', [CompletionResultType]::ParameterName, 'Stream bodies larger than this when decoded instead of storing them [default: 512MiB]')
            [CompletionResult]::new('--max-attachment-size', '--max-attachment-size', [CompletionResultType]::ParameterName, 'Refuse attachments larger than this [default: 5GiB]')
            [CompletionResult]::new('--max-connections', '--max-connections', [CompletionResultType]::ParameterName, 'Limit concurrent client connections; beyond it the longest idle one is closed [default: 4096]')
            [CompletionResult]::new('--memory-budget', '--memory-budget', [CompletionResultType]::ParameterName, 'Limit the memory for bodies of clients and replay; if unset, 256MiB, or less in a small container')
            [CompletionResult]::new('--client-timeout', '--client-timeout', [CompletionResultType]::ParameterName, 'Close client connections that are idle for this long [default: 2m]')
            [CompletionResult]::new('--client-cert-file', '--client-cert-file', [CompletionResultType]::ParameterName, 'Present this client certificate (PEM) to the server, for mTLS')
            [CompletionResult]::new('--client-key-file', '--client-key-file', [CompletionResultType]::ParameterName, 'Private key of that certificate, unless it is in the same file')
            [CompletionResult]::new('--upstream-headers-file', '--upstream-headers-file', [CompletionResultType]::ParameterName, 'Send the headers in this file to the server, one `Name: value` per line')
            [CompletionResult]::new('--connect-timeout', '--connect-timeout', [CompletionResultType]::ParameterName, 'Timeout for connecting to the server [default: 5s]')
            [CompletionResult]::new('--forward-timeout', '--forward-timeout', [CompletionResultType]::ParameterName, 'Store a write if the server has not answered within this time [default: 1m35s]')
            [CompletionResult]::new('--retry-interval', '--retry-interval', [CompletionResultType]::ParameterName, 'Retry a held lane after this long: its key is invalid, the server redirects or fails every request [default: 10s]')
            [CompletionResult]::new('--shutdown-timeout', '--shutdown-timeout', [CompletionResultType]::ParameterName, 'Give requests in flight this long to finish when stopping [default: 10s]')
            [CompletionResult]::new('--flush-timeout', '--flush-timeout', [CompletionResultType]::ParameterName, 'Deliver for at most this long after the command has ended [default: 30s]')
            [CompletionResult]::new('--log-format', '--log-format', [CompletionResultType]::ParameterName, 'Log format: text or json [default: text]')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--fleet', '--fleet', [CompletionResultType]::ParameterName, 'Keep copies in this depot, such as s3://BUCKET/PREFIX')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--background', '--background', [CompletionResultType]::ParameterName, 'Start the agent in the background, unless it runs')
            [CompletionResult]::new('--stop', '--stop', [CompletionResultType]::ParameterName, 'Stop the background agent for this server and store')
            [CompletionResult]::new('--print-url', '--print-url', [CompletionResultType]::ParameterName, 'With --background: print the address for OPIK_URL_OVERRIDE and nothing else')
            [CompletionResult]::new('--detached', '--detached', [CompletionResultType]::ParameterName, 'Run as the background agent, for a starter that holds its lock')
            [CompletionResult]::new('--insecure-listen', '--insecure-listen', [CompletionResultType]::ParameterName, 'Listen beyond this machine without requiring an intake token')
            [CompletionResult]::new('--hub', '--hub', [CompletionResultType]::ParameterName, 'Be a hub: other agents use this one as their --upstream')
            [CompletionResult]::new('--adopt-orphans', '--adopt-orphans', [CompletionResultType]::ParameterName, 'Salvage and deliver what killed Python processes leave behind')
            [CompletionResult]::new('--rekey-refused', '--rekey-refused', [CompletionResultType]::ParameterName, 'Use the configured key for messages whose key the server rejects (401, 403), for the same server and workspace')
            [CompletionResult]::new('--fleet-replay', '--fleet-replay', [CompletionResultType]::ParameterName, 'Also deliver what agents that are gone left in the depot')
            [CompletionResult]::new('--all-otlp-traces', '--all-otlp-traces', [CompletionResultType]::ParameterName, 'Route all OTLP traces of the command to Opik, not only those that already went there')
            [CompletionResult]::new('--fleet-insecure', '--fleet-insecure', [CompletionResultType]::ParameterName, 'Reach the depot of the fleet without TLS, and not only on this machine')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Disable colours, like NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;healthcheck' {
            [CompletionResult]::new('--wait', '--wait', [CompletionResultType]::ParameterName, 'Retry for up to this long until all checks pass')
            [CompletionResult]::new('--bundle', '--bundle', [CompletionResultType]::ParameterName, 'Also write an archive to attach to an issue: checks, settings, status, counts, log; no bodies, no keys')
            [CompletionResult]::new('--project-name', '--project-name', [CompletionResultType]::ParameterName, 'Project that the smoke test writes to')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--fleet', '--fleet', [CompletionResultType]::ParameterName, 'Keep copies in this depot, such as s3://BUCKET/PREFIX')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--full', '--full', [CompletionResultType]::ParameterName, 'Check every page of the store even if it is large, which takes about 20 seconds per gigabyte')
            [CompletionResult]::new('--smoke-test', '--smoke-test', [CompletionResultType]::ParameterName, 'Write a trace with a span and an image to the server and read it back, if all checks pass')
            [CompletionResult]::new('--reseal', '--reseal', [CompletionResultType]::ParameterName, 'Re-encrypt or decrypt the store to match the settings, and scrub old data; makes no network requests')
            [CompletionResult]::new('--fleet-insecure', '--fleet-insecure', [CompletionResultType]::ParameterName, 'Reach the depot of the fleet without TLS, and not only on this machine')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Disable colours, like NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;status' {
            [CompletionResult]::new('--fail-if-backlog', '--fail-if-backlog', [CompletionResultType]::ParameterName, 'Exit with 4 when more than this many messages wait')
            [CompletionResult]::new('--fail-if-older-than', '--fail-if-older-than', [CompletionResultType]::ParameterName, 'Exit with 4 when a message has been waiting longer than this')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--fleet', '--fleet', [CompletionResultType]::ParameterName, 'Keep copies in this depot, such as s3://BUCKET/PREFIX')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--watch', '--watch', [CompletionResultType]::ParameterName, 'Show it again every 2 seconds until interrupted')
            [CompletionResult]::new('--utc', '--utc', [CompletionResultType]::ParameterName, 'Show times in UTC instead of relative to now')
            [CompletionResult]::new('--fleet-insecure', '--fleet-insecure', [CompletionResultType]::ParameterName, 'Reach the depot of the fleet without TLS, and not only on this machine')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Disable colours, like NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;replay' {
            [CompletionResult]::new('--batch-size', '--batch-size', [CompletionResultType]::ParameterName, 'Replay this many messages, then pause')
            [CompletionResult]::new('--delay', '--delay', [CompletionResultType]::ParameterName, 'Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up')
            [CompletionResult]::new('--limit', '--limit', [CompletionResultType]::ParameterName, 'Stop after this many messages')
            [CompletionResult]::new('--timeout', '--timeout', [CompletionResultType]::ParameterName, 'Keep retrying for up to this long, then stop')
            [CompletionResult]::new('--verify-timeout', '--verify-timeout', [CompletionResultType]::ParameterName, 'Retry reading what the server does not show yet, for up to this long after the delivery')
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'Take in files of Python processes or other stores')
            [CompletionResult]::new('--owner', '--owner', [CompletionResultType]::ParameterName, 'As root, salvage the files of this user (name or number)')
            [CompletionResult]::new('--attachments-from', '--attachments-from', [CompletionResultType]::ParameterName, 'Also send attachments whose files are in this directory')
            [CompletionResult]::new('--to', '--to', [CompletionResultType]::ParameterName, 'Write a sealed copy of the store to FILE, and send nothing')
            [CompletionResult]::new('--recipient', '--recipient', [CompletionResultType]::ParameterName, 'Seal the copy for this public key, `age1...`')
            [CompletionResult]::new('--recipients-file', '--recipients-file', [CompletionResultType]::ParameterName, 'Seal the copy for the public keys in this file, one a line')
            [CompletionResult]::new('--identity', '--identity', [CompletionResultType]::ParameterName, 'Open what is sealed, in copies of --from or in the depot of --fleet, with the secret key in this file')
            [CompletionResult]::new('--make-identity', '--make-identity', [CompletionResultType]::ParameterName, 'Make a key pair: write the secret key to KEYFILE, and print the public key for --recipient')
            [CompletionResult]::new('--status', '--status', [CompletionResultType]::ParameterName, 'Only messages with this status (may be given more than once)')
            [CompletionResult]::new('--type', '--type', [CompletionResultType]::ParameterName, 'Only messages of this type, such as OtlpTraces')
            [CompletionResult]::new('--workspace', '--workspace', [CompletionResultType]::ParameterName, 'Only messages of this workspace')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Only messages for this server (the URL that `status` shows)')
            [CompletionResult]::new('--project', '--project', [CompletionResultType]::ParameterName, 'Only messages that name this project')
            [CompletionResult]::new('--id', '--id', [CompletionResultType]::ParameterName, 'Only the message with this id')
            [CompletionResult]::new('--trace', '--trace', [CompletionResultType]::ParameterName, 'Only messages about this trace or its spans')
            [CompletionResult]::new('--older-than', '--older-than', [CompletionResultType]::ParameterName, 'Only messages older than this, such as 2h or 7d')
            [CompletionResult]::new('--newer-than', '--newer-than', [CompletionResultType]::ParameterName, 'Only messages accepted within this time, such as 15m')
            [CompletionResult]::new('--readdress', '--readdress', [CompletionResultType]::ParameterName, 'Deliver messages for this server to --upstream instead')
            [CompletionResult]::new('--lane', '--lane', [CompletionResultType]::ParameterName, 'With --rekey or --readdress: only this lane, by its number in --dry-run')
            [CompletionResult]::new('--stage', '--stage', [CompletionResultType]::ParameterName, 'With --fleet: keep at most this many bytes of messages on this machine')
            [CompletionResult]::new('--credentials-dir', '--credentials-dir', [CompletionResultType]::ParameterName, 'With --fleet: read the API keys that messages only name from this folder, one file for each')
            [CompletionResult]::new('--stream', '--stream', [CompletionResultType]::ParameterName, 'With --fleet: only messages of this stream (may be given more than once)')
            [CompletionResult]::new('--pace', '--pace', [CompletionResultType]::ParameterName, 'With --fleet: let the whole fleet deliver at most this many messages a second, such as 20000/s, or `none`')
            [CompletionResult]::new('--hold', '--hold', [CompletionResultType]::ParameterName, 'Let nothing that waits be delivered for this long, such as 30m; 7d at most')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--fleet', '--fleet', [CompletionResultType]::ParameterName, 'Keep copies in this depot, such as s3://BUCKET/PREFIX')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--verify', '--verify', [CompletionResultType]::ParameterName, 'Read delivered data back, and report what is missing')
            [CompletionResult]::new('--remove-source', '--remove-source', [CompletionResultType]::ParameterName, 'Delete each file of --from, and the SDK''s temporary copies of attachments, once all its messages are stored')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Show what would be replayed, without sending anything')
            [CompletionResult]::new('--rejected', '--rejected', [CompletionResultType]::ParameterName, 'Only rejected messages (--status rejected)')
            [CompletionResult]::new('--rekey', '--rekey', [CompletionResultType]::ParameterName, 'Use the configured key for lanes whose key the server rejects')
            [CompletionResult]::new('-y', '-y', [CompletionResultType]::ParameterName, 'With --rekey or --readdress: don''t ask for confirmation')
            [CompletionResult]::new('--yes', '--yes', [CompletionResultType]::ParameterName, 'With --rekey or --readdress: don''t ask for confirmation')
            [CompletionResult]::new('--follow', '--follow', [CompletionResultType]::ParameterName, 'With --fleet: keep running, and take over each stream whose agent goes away')
            [CompletionResult]::new('--fail-if-backlog', '--fail-if-backlog', [CompletionResultType]::ParameterName, 'With --fleet: exit with 4 when messages remain in the depot, also those of agents that are alive')
            [CompletionResult]::new('--resume', '--resume', [CompletionResultType]::ParameterName, 'End a hold; with --fleet the pace stays')
            [CompletionResult]::new('--fleet-insecure', '--fleet-insecure', [CompletionResultType]::ParameterName, 'Reach the depot of the fleet without TLS, and not only on this machine')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Disable colours, like NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;inspect' {
            [CompletionResult]::new('--from', '--from', [CompletionResultType]::ParameterName, 'List what a Python process left behind in this file')
            [CompletionResult]::new('--owner', '--owner', [CompletionResultType]::ParameterName, 'As root, read a file of this user (name or number)')
            [CompletionResult]::new('--limit', '--limit', [CompletionResultType]::ParameterName, 'List at most this many; 0 lists all [default: 50]')
            [CompletionResult]::new('--search', '--search', [CompletionResultType]::ParameterName, 'List only messages with this text in their body')
            [CompletionResult]::new('--columns', '--columns', [CompletionResultType]::ParameterName, 'Show these columns of the list, separated by commas; -o wide shows more of them')
            [CompletionResult]::new('--totals', '--totals', [CompletionResultType]::ParameterName, 'Count the selected messages by this instead of listing them')
            [CompletionResult]::new('--identity', '--identity', [CompletionResultType]::ParameterName, 'With --fleet: open what is sealed with the secret key in this file')
            [CompletionResult]::new('--status', '--status', [CompletionResultType]::ParameterName, 'Only messages with this status (may be given more than once)')
            [CompletionResult]::new('--type', '--type', [CompletionResultType]::ParameterName, 'Only messages of this type, such as OtlpTraces')
            [CompletionResult]::new('--workspace', '--workspace', [CompletionResultType]::ParameterName, 'Only messages of this workspace')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Only messages for this server (the URL that `status` shows)')
            [CompletionResult]::new('--project', '--project', [CompletionResultType]::ParameterName, 'Only messages that name this project')
            [CompletionResult]::new('--id', '--id', [CompletionResultType]::ParameterName, 'Only the message with this id')
            [CompletionResult]::new('--trace', '--trace', [CompletionResultType]::ParameterName, 'Only messages about this trace or its spans')
            [CompletionResult]::new('--older-than', '--older-than', [CompletionResultType]::ParameterName, 'Only messages older than this, such as 2h or 7d')
            [CompletionResult]::new('--newer-than', '--newer-than', [CompletionResultType]::ParameterName, 'Only messages accepted within this time, such as 15m')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--fleet', '--fleet', [CompletionResultType]::ParameterName, 'Keep copies in this depot, such as s3://BUCKET/PREFIX')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--newest', '--newest', [CompletionResultType]::ParameterName, 'List the newest messages first')
            [CompletionResult]::new('--utc', '--utc', [CompletionResultType]::ParameterName, 'Show times in UTC instead of relative to now')
            [CompletionResult]::new('--follow', '--follow', [CompletionResultType]::ParameterName, 'Show new messages as they are stored')
            [CompletionResult]::new('--no-pager', '--no-pager', [CompletionResultType]::ParameterName, 'Show long results without a pager')
            [CompletionResult]::new('--rejected', '--rejected', [CompletionResultType]::ParameterName, 'Only rejected messages (--status rejected)')
            [CompletionResult]::new('--fleet-insecure', '--fleet-insecure', [CompletionResultType]::ParameterName, 'Reach the depot of the fleet without TLS, and not only on this machine')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Disable colours, like NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;purge' {
            [CompletionResult]::new('--stream', '--stream', [CompletionResultType]::ParameterName, 'With --fleet: only messages of this stream; without another filter all of it, readable or not')
            [CompletionResult]::new('--identity', '--identity', [CompletionResultType]::ParameterName, 'With --fleet: open what is sealed with the secret key in this file')
            [CompletionResult]::new('--status', '--status', [CompletionResultType]::ParameterName, 'Only messages with this status (may be given more than once)')
            [CompletionResult]::new('--type', '--type', [CompletionResultType]::ParameterName, 'Only messages of this type, such as OtlpTraces')
            [CompletionResult]::new('--workspace', '--workspace', [CompletionResultType]::ParameterName, 'Only messages of this workspace')
            [CompletionResult]::new('--server', '--server', [CompletionResultType]::ParameterName, 'Only messages for this server (the URL that `status` shows)')
            [CompletionResult]::new('--project', '--project', [CompletionResultType]::ParameterName, 'Only messages that name this project')
            [CompletionResult]::new('--id', '--id', [CompletionResultType]::ParameterName, 'Only the message with this id')
            [CompletionResult]::new('--trace', '--trace', [CompletionResultType]::ParameterName, 'Only messages about this trace or its spans')
            [CompletionResult]::new('--older-than', '--older-than', [CompletionResultType]::ParameterName, 'Only messages older than this, such as 2h or 7d')
            [CompletionResult]::new('--newer-than', '--newer-than', [CompletionResultType]::ParameterName, 'Only messages accepted within this time, such as 15m')
            [CompletionResult]::new('--db', '--db', [CompletionResultType]::ParameterName, 'Use this message store')
            [CompletionResult]::new('--upstream', '--upstream', [CompletionResultType]::ParameterName, 'Use this Opik server, such as http://127.0.0.1:5173/api')
            [CompletionResult]::new('--fleet', '--fleet', [CompletionResultType]::ParameterName, 'Keep copies in this depot, such as s3://BUCKET/PREFIX')
            [CompletionResult]::new('-o', '-o', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--format', '--format', [CompletionResultType]::ParameterName, 'Write results in this format')
            [CompletionResult]::new('--dry-run', '--dry-run', [CompletionResultType]::ParameterName, 'Show what would be deleted, and delete nothing')
            [CompletionResult]::new('-y', '-y', [CompletionResultType]::ParameterName, 'Delete without asking')
            [CompletionResult]::new('--yes', '--yes', [CompletionResultType]::ParameterName, 'Delete without asking')
            [CompletionResult]::new('--rejected', '--rejected', [CompletionResultType]::ParameterName, 'Only rejected messages (--status rejected)')
            [CompletionResult]::new('--fleet-insecure', '--fleet-insecure', [CompletionResultType]::ParameterName, 'Reach the depot of the fleet without TLS, and not only on this machine')
            [CompletionResult]::new('-q', '-q', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('--quiet', '--quiet', [CompletionResultType]::ParameterName, 'Print only the requested result and errors')
            [CompletionResult]::new('-v', '-v', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--verbose', '--verbose', [CompletionResultType]::ParameterName, 'Log more to standard error')
            [CompletionResult]::new('--no-color', '--no-color', [CompletionResultType]::ParameterName, 'Disable colours, like NO_COLOR in the environment')
            [CompletionResult]::new('-h', '-h', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            [CompletionResult]::new('--help', '--help', [CompletionResultType]::ParameterName, 'Print help (see more with ''--help'')')
            break
        }
        'opik-offline;help' {
            [CompletionResult]::new('agent', 'agent', [CompletionResultType]::ParameterValue, 'Run the agent: forward, store while the server is down, deliver afterwards')
            [CompletionResult]::new('healthcheck', 'healthcheck', [CompletionResultType]::ParameterValue, 'Check the configuration, the Opik server, access to it, the store and its disk')
            [CompletionResult]::new('status', 'status', [CompletionResultType]::ParameterValue, 'Show whether the data is safe, what is wrong and what mends it, and what is stored')
            [CompletionResult]::new('replay', 'replay', [CompletionResultType]::ParameterValue, 'Deliver stored messages to the Opik server')
            [CompletionResult]::new('inspect', 'inspect', [CompletionResultType]::ParameterValue, 'List stored messages, or show one in full')
            [CompletionResult]::new('purge', 'purge', [CompletionResultType]::ParameterValue, 'Delete stored messages permanently')
            [CompletionResult]::new('help', 'help', [CompletionResultType]::ParameterValue, 'Print this message or the help of the given subcommand(s)')
            break
        }
        'opik-offline;help;agent' {
            break
        }
        'opik-offline;help;healthcheck' {
            break
        }
        'opik-offline;help;status' {
            break
        }
        'opik-offline;help;replay' {
            break
        }
        'opik-offline;help;inspect' {
            break
        }
        'opik-offline;help;purge' {
            break
        }
        'opik-offline;help;help' {
            break
        }
    })

    $completions.Where{ $_.CompletionText -like "$wordToComplete*" } |
        Sort-Object -Property ListItemText
}
