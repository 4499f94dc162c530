# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_opik_offline_global_optspecs
    string join \n completions= db= upstream= fleet= fleet-insecure o/format= q/quiet v/verbose no-color h/help V/version
end

function __fish_opik_offline_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_opik_offline_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_opik_offline_using_subcommand
    set -l cmd (__fish_opik_offline_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c opik-offline -n "__fish_opik_offline_needs_command" -l completions -d 'Print what this shell reads to complete commands' -r -f -a "bash\t''
zsh\t''
fish\t''
powershell\t''
elvish\t''"
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l fleet -d 'Keep copies in this depot, such as s3://BUCKET/PREFIX' -r -f
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s o -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
wide\t'Tables with more columns (`inspect` only)'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l fleet-insecure -d 'Reach the depot of the fleet without TLS, and not only on this machine'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s q -l quiet -d 'Print only the requested result and errors'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s v -l verbose -d 'Log more to standard error'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l no-color -d 'Disable colours, like NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s V -l version -d 'Print version'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "agent" -d 'Run the agent: forward, store while the server is down, deliver afterwards'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "healthcheck" -d 'Check the configuration, the Opik server, access to it, the store and its disk'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "status" -d 'Show whether the data is safe, what is wrong and what mends it, and what is stored'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "replay" -d 'Deliver stored messages to the Opik server'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "inspect" -d 'List stored messages, or show one in full'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "purge" -d 'Delete stored messages permanently'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l idle-exit -d 'End when no client is connected and no message waits for this long [default: none]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l listen -d 'Listen on this address [default: 127.0.0.1:6745]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l allowed-hosts -d 'Accept requests for these hosts and from web pages of these origins [default: none]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l hub-token-file -d 'Send the token in this file to the hub, if --upstream is a hub' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l batch-size -d 'Replay this many messages, then pause; if unset, replay starts at 50 and speeds up while the server keeps up' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l delay -d 'Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-size -d 'Limit the store to this size [default: 10GiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l free-disk-reserve -d 'Leave this much disk space free; if unset, a tenth of a small disk [default: 256MiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l when-full -d 'When the store is full: refuse or drop_oldest [default: refuse]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l rejected-share -d 'When space is needed, drop the oldest rejected messages beyond this percentage of the store [default: 25]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l rejected-export -d 'Write rejected messages to this directory as JSON lines before they are dropped to free space [default: none]' -r -f -a "(__fish_complete_directories)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l acknowledge -d 'Acknowledge a stored write after the local commit, or once its copy is in the depot: local or fleet [default: local]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l when-depot-away -d 'With --acknowledge fleet, while the depot is away: local acknowledges, refuse answers 503 [default: local]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l fleet-recipients -d 'Seal copies in the depot for these public keys, separated by commas [default: none]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-age -d 'Drop messages that are older than this [default: none]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-attempts -d 'Reject a message that failed on its own this many times [default: 10]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-body-size -d 'Stream bodies larger than this as sent instead of storing them [default: 500MiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-inflated-size -d 'Stream bodies larger than this when decoded instead of storing them [default: 512MiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-attachment-size -d 'Refuse attachments larger than this [default: 5GiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-connections -d 'Limit concurrent client connections; beyond it the longest idle one is closed [default: 4096]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l memory-budget -d 'Limit the memory for bodies of clients and replay; if unset, 256MiB, or less in a small container' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l client-timeout -d 'Close client connections that are idle for this long [default: 2m]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l client-cert-file -d 'Present this client certificate (PEM) to the server, for mTLS' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l client-key-file -d 'Private key of that certificate, unless it is in the same file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l upstream-headers-file -d 'Send the headers in this file to the server, one `Name: value` per line' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l connect-timeout -d 'Timeout for connecting to the server [default: 5s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l forward-timeout -d 'Store a write if the server has not answered within this time [default: 1m35s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l retry-interval -d 'Retry a held lane after this long: its key is invalid, the server redirects or fails every request [default: 10s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l shutdown-timeout -d 'Give requests in flight this long to finish when stopping [default: 10s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l flush-timeout -d 'Deliver for at most this long after the command has ended [default: 30s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l log-format -d 'Log format: text or json [default: text]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l fleet -d 'Keep copies in this depot, such as s3://BUCKET/PREFIX' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -s o -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
wide\t'Tables with more columns (`inspect` only)'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l background -d 'Start the agent in the background, unless it runs'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l stop -d 'Stop the background agent for this server and store'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l print-url -d 'With --background: print the address for OPIK_URL_OVERRIDE and nothing else'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l detached -d 'Run as the background agent, for a starter that holds its lock'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l insecure-listen -d 'Listen beyond this machine without requiring an intake token'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l hub -d 'Be a hub: other agents use this one as their --upstream'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l adopt-orphans -d 'Salvage and deliver what killed Python processes leave behind'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l rekey-refused -d 'Use the configured key for messages whose key the server rejects (401, 403), for the same server and workspace'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l fleet-replay -d 'Also deliver what agents that are gone left in the depot'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l all-otlp-traces -d 'Route all OTLP traces of the command to Opik, not only those that already went there'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l fleet-insecure -d 'Reach the depot of the fleet without TLS, and not only on this machine'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -s q -l quiet -d 'Print only the requested result and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -s v -l verbose -d 'Log more to standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l no-color -d 'Disable colours, like NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l wait -d 'Retry for up to this long until all checks pass' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l bundle -d 'Also write an archive to attach to an issue: checks, settings, status, counts, log; no bodies, no keys' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l project-name -d 'Project that the smoke test writes to' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l fleet -d 'Keep copies in this depot, such as s3://BUCKET/PREFIX' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -s o -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
wide\t'Tables with more columns (`inspect` only)'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l full -d 'Check every page of the store even if it is large, which takes about 20 seconds per gigabyte'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l smoke-test -d 'Write a trace with a span and an image to the server and read it back, if all checks pass'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l reseal -d 'Re-encrypt or decrypt the store to match the settings, and scrub old data; makes no network requests'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l fleet-insecure -d 'Reach the depot of the fleet without TLS, and not only on this machine'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -s q -l quiet -d 'Print only the requested result and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -s v -l verbose -d 'Log more to standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l no-color -d 'Disable colours, like NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l fail-if-backlog -d 'Exit with 4 when more than this many messages wait' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l fail-if-older-than -d 'Exit with 4 when a message has been waiting longer than this' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l fleet -d 'Keep copies in this depot, such as s3://BUCKET/PREFIX' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -s o -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
wide\t'Tables with more columns (`inspect` only)'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l watch -d 'Show it again every 2 seconds until interrupted'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l utc -d 'Show times in UTC instead of relative to now'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l fleet-insecure -d 'Reach the depot of the fleet without TLS, and not only on this machine'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -s q -l quiet -d 'Print only the requested result and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -s v -l verbose -d 'Log more to standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l no-color -d 'Disable colours, like NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l batch-size -d 'Replay this many messages, then pause' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l delay -d 'Pause this long after a full batch; if unset, replay starts at 500ms and speeds up while the server keeps up' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l limit -d 'Stop after this many messages' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l timeout -d 'Keep retrying for up to this long, then stop' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l verify-timeout -d 'Retry reading what the server does not show yet, for up to this long after the delivery' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l from -d 'Take in files of Python processes or other stores' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l owner -d 'As root, salvage the files of this user (name or number)' -r -f -a "(__fish_complete_users)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l attachments-from -d 'Also send attachments whose files are in this directory' -r -f -a "(__fish_complete_directories)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l to -d 'Write a sealed copy of the store to FILE, and send nothing' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l recipient -d 'Seal the copy for this public key, `age1...`' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l recipients-file -d 'Seal the copy for the public keys in this file, one a line' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l identity -d 'Open what is sealed, in copies of --from or in the depot of --fleet, with the secret key in this file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l make-identity -d 'Make a key pair: write the secret key to KEYFILE, and print the public key for --recipient' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l status -d 'Only messages with this status (may be given more than once)' -r -f -a "waiting\t''
sending\t''
held\t''
rejected\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l type -d 'Only messages of this type, such as OtlpTraces' -r -f -a "CreateTrace\t''
UpdateTrace\t''
CreateTraceBatch\t''
CreateSpan\t''
UpdateSpan\t''
CreateSpansBatch\t''
AddTraceFeedbackScoresBatch\t''
AddSpanFeedbackScoresBatch\t''
AddThreadsFeedbackScoresBatch\t''
CreateExperimentItemsBatch\t''
GuardrailBatch\t''
AddAssertionResultsBatch\t''
CreateAttachment\t''
OtlpTraces\t''
UpdateTraces\t''
DeleteTrace\t''
DeleteTraces\t''
ScoreTrace\t''
DeleteTraceScore\t''
UpdateTraceComment\t''
DeleteTraceComments\t''
UpdateSpans\t''
DeleteSpan\t''
ScoreSpan\t''
DeleteSpanScore\t''
UpdateSpanComment\t''
DeleteSpanComments\t''
OpenThread\t''
CloseThreads\t''
UpdateThread\t''
UpdateThreads\t''
DeleteThreads\t''
DeleteThreadScores\t''
UpdateThreadComment\t''
DeleteThreadComments\t''
CreateDataset\t''
PutDatasetItems\t''
UpdateDatasetItem\t''
UpdateDatasetItems\t''
DeleteDatasetItems\t''
CreateExperiment\t''
UpdateExperiment\t''
UpdateExperiments\t''
FinishExperiments\t''
DeleteExperiments\t''
PutExperimentItems\t''
DeleteExperimentItems\t''
CreateOptimization\t''
PutOptimization\t''
UpdateOptimization\t''
AddQueueItems\t''
RemoveQueueItems\t''
DeleteAttachments\t''
AppendJobLogs\t''
UnknownSdkRow\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l workspace -d 'Only messages of this workspace' -r -f -a '(__opik_offline_values workspaces)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l server -d 'Only messages for this server (the URL that `status` shows)' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l project -d 'Only messages that name this project' -r -f -a '(__opik_offline_values projects)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l id -d 'Only the message with this id' -r -f -a '(__opik_offline_values ids)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l trace -d 'Only messages about this trace or its spans' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l older-than -d 'Only messages older than this, such as 2h or 7d' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l newer-than -d 'Only messages accepted within this time, such as 15m' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l readdress -d 'Deliver messages for this server to --upstream instead' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l lane -d 'With --rekey or --readdress: only this lane, by its number in --dry-run' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l stage -d 'With --fleet: keep at most this many bytes of messages on this machine' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l credentials-dir -d 'With --fleet: read the API keys that messages only name from this folder, one file for each' -r -f -a "(__fish_complete_directories)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l stream -d 'With --fleet: only messages of this stream (may be given more than once)' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l pace -d 'With --fleet: let the whole fleet deliver at most this many messages a second, such as 20000/s, or `none`' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l hold -d 'Let nothing that waits be delivered for this long, such as 30m; 7d at most' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l fleet -d 'Keep copies in this depot, such as s3://BUCKET/PREFIX' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s o -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
wide\t'Tables with more columns (`inspect` only)'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l verify -d 'Read delivered data back, and report what is missing'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l remove-source -d 'Delete each file of --from, and the SDK\'s temporary copies of attachments, once all its messages are stored'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l dry-run -d 'Show what would be replayed, without sending anything'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l rejected -d 'Only rejected messages (--status rejected)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l rekey -d 'Use the configured key for lanes whose key the server rejects'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s y -l yes -d 'With --rekey or --readdress: don\'t ask for confirmation'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l follow -d 'With --fleet: keep running, and take over each stream whose agent goes away'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l fail-if-backlog -d 'With --fleet: exit with 4 when messages remain in the depot, also those of agents that are alive'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l resume -d 'End a hold; with --fleet the pace stays'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l fleet-insecure -d 'Reach the depot of the fleet without TLS, and not only on this machine'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s q -l quiet -d 'Print only the requested result and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s v -l verbose -d 'Log more to standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l no-color -d 'Disable colours, like NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l from -d 'List what a Python process left behind in this file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l owner -d 'As root, read a file of this user (name or number)' -r -f -a "(__fish_complete_users)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l limit -d 'List at most this many; 0 lists all [default: 50]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l search -d 'List only messages with this text in their body' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l columns -d 'Show these columns of the list, separated by commas; -o wide shows more of them' -r -f -a "id\t''
status\t''
type\t''
name\t''
trace\t''
workspace\t''
project\t''
server\t''
request\t''
items\t''
size\t''
attempts\t''
age\t''
accepted\t''
next\t''
answer\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l totals -d 'Count the selected messages by this instead of listing them' -r -f -a "project\t''
workspace\t''
server\t''
type\t''
status\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l identity -d 'With --fleet: open what is sealed with the secret key in this file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l status -d 'Only messages with this status (may be given more than once)' -r -f -a "waiting\t''
sending\t''
held\t''
rejected\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l type -d 'Only messages of this type, such as OtlpTraces' -r -f -a "CreateTrace\t''
UpdateTrace\t''
CreateTraceBatch\t''
CreateSpan\t''
UpdateSpan\t''
CreateSpansBatch\t''
AddTraceFeedbackScoresBatch\t''
AddSpanFeedbackScoresBatch\t''
AddThreadsFeedbackScoresBatch\t''
CreateExperimentItemsBatch\t''
GuardrailBatch\t''
AddAssertionResultsBatch\t''
CreateAttachment\t''
OtlpTraces\t''
UpdateTraces\t''
DeleteTrace\t''
DeleteTraces\t''
ScoreTrace\t''
DeleteTraceScore\t''
UpdateTraceComment\t''
DeleteTraceComments\t''
UpdateSpans\t''
DeleteSpan\t''
ScoreSpan\t''
DeleteSpanScore\t''
UpdateSpanComment\t''
DeleteSpanComments\t''
OpenThread\t''
CloseThreads\t''
UpdateThread\t''
UpdateThreads\t''
DeleteThreads\t''
DeleteThreadScores\t''
UpdateThreadComment\t''
DeleteThreadComments\t''
CreateDataset\t''
PutDatasetItems\t''
UpdateDatasetItem\t''
UpdateDatasetItems\t''
DeleteDatasetItems\t''
CreateExperiment\t''
UpdateExperiment\t''
UpdateExperiments\t''
FinishExperiments\t''
DeleteExperiments\t''
PutExperimentItems\t''
DeleteExperimentItems\t''
CreateOptimization\t''
PutOptimization\t''
UpdateOptimization\t''
AddQueueItems\t''
RemoveQueueItems\t''
DeleteAttachments\t''
AppendJobLogs\t''
UnknownSdkRow\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l workspace -d 'Only messages of this workspace' -r -f -a '(__opik_offline_values workspaces)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l server -d 'Only messages for this server (the URL that `status` shows)' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l project -d 'Only messages that name this project' -r -f -a '(__opik_offline_values projects)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l id -d 'Only the message with this id' -r -f -a '(__opik_offline_values ids)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l trace -d 'Only messages about this trace or its spans' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l older-than -d 'Only messages older than this, such as 2h or 7d' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l newer-than -d 'Only messages accepted within this time, such as 15m' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l fleet -d 'Keep copies in this depot, such as s3://BUCKET/PREFIX' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -s o -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
wide\t'Tables with more columns (`inspect` only)'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l newest -d 'List the newest messages first'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l utc -d 'Show times in UTC instead of relative to now'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l follow -d 'Show new messages as they are stored'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l no-pager -d 'Show long results without a pager'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l rejected -d 'Only rejected messages (--status rejected)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l fleet-insecure -d 'Reach the depot of the fleet without TLS, and not only on this machine'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -s q -l quiet -d 'Print only the requested result and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -s v -l verbose -d 'Log more to standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l no-color -d 'Disable colours, like NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l stream -d 'With --fleet: only messages of this stream; without another filter all of it, readable or not' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l identity -d 'With --fleet: open what is sealed with the secret key in this file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l status -d 'Only messages with this status (may be given more than once)' -r -f -a "waiting\t''
sending\t''
held\t''
rejected\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l type -d 'Only messages of this type, such as OtlpTraces' -r -f -a "CreateTrace\t''
UpdateTrace\t''
CreateTraceBatch\t''
CreateSpan\t''
UpdateSpan\t''
CreateSpansBatch\t''
AddTraceFeedbackScoresBatch\t''
AddSpanFeedbackScoresBatch\t''
AddThreadsFeedbackScoresBatch\t''
CreateExperimentItemsBatch\t''
GuardrailBatch\t''
AddAssertionResultsBatch\t''
CreateAttachment\t''
OtlpTraces\t''
UpdateTraces\t''
DeleteTrace\t''
DeleteTraces\t''
ScoreTrace\t''
DeleteTraceScore\t''
UpdateTraceComment\t''
DeleteTraceComments\t''
UpdateSpans\t''
DeleteSpan\t''
ScoreSpan\t''
DeleteSpanScore\t''
UpdateSpanComment\t''
DeleteSpanComments\t''
OpenThread\t''
CloseThreads\t''
UpdateThread\t''
UpdateThreads\t''
DeleteThreads\t''
DeleteThreadScores\t''
UpdateThreadComment\t''
DeleteThreadComments\t''
CreateDataset\t''
PutDatasetItems\t''
UpdateDatasetItem\t''
UpdateDatasetItems\t''
DeleteDatasetItems\t''
CreateExperiment\t''
UpdateExperiment\t''
UpdateExperiments\t''
FinishExperiments\t''
DeleteExperiments\t''
PutExperimentItems\t''
DeleteExperimentItems\t''
CreateOptimization\t''
PutOptimization\t''
UpdateOptimization\t''
AddQueueItems\t''
RemoveQueueItems\t''
DeleteAttachments\t''
AppendJobLogs\t''
UnknownSdkRow\t''"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l workspace -d 'Only messages of this workspace' -r -f -a '(__opik_offline_values workspaces)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l server -d 'Only messages for this server (the URL that `status` shows)' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l project -d 'Only messages that name this project' -r -f -a '(__opik_offline_values projects)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l id -d 'Only the message with this id' -r -f -a '(__opik_offline_values ids)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l trace -d 'Only messages about this trace or its spans' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l older-than -d 'Only messages older than this, such as 2h or 7d' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l newer-than -d 'Only messages accepted within this time, such as 15m' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l fleet -d 'Keep copies in this depot, such as s3://BUCKET/PREFIX' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s o -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
wide\t'Tables with more columns (`inspect` only)'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l dry-run -d 'Show what would be deleted, and delete nothing'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s y -l yes -d 'Delete without asking'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l rejected -d 'Only rejected messages (--status rejected)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l fleet-insecure -d 'Reach the depot of the fleet without TLS, and not only on this machine'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s q -l quiet -d 'Print only the requested result and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s v -l verbose -d 'Log more to standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l no-color -d 'Disable colours, like NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "agent" -d 'Run the agent: forward, store while the server is down, deliver afterwards'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "healthcheck" -d 'Check the configuration, the Opik server, access to it, the store and its disk'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "status" -d 'Show whether the data is safe, what is wrong and what mends it, and what is stored'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "replay" -d 'Deliver stored messages to the Opik server'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "inspect" -d 'List stored messages, or show one in full'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "purge" -d 'Delete stored messages permanently'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
function __opik_offline_values
    set -l words (commandline -opc)
    if set -l at (contains -i -- --db $words)
        opik-offline __values $argv[1] --db $words[(math $at + 1)] 2>/dev/null
    else
        opik-offline __values $argv[1] 2>/dev/null
    end
end
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -f -a '(__opik_offline_values ids)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -f
