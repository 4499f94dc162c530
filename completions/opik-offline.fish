# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_opik_offline_global_optspecs
    string join \n db= upstream= format= q/quiet v/verbose no-color h/help V/version
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

complete -c opik-offline -n "__fish_opik_offline_needs_command" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s q -l quiet -d 'Say only what was asked for, and errors'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s v -l verbose -d 'Say more on standard error'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -l no-color -d 'Use no colours, as with NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -s V -l version -d 'Print version'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "agent" -d 'Run the agent: pass on, store while the server is away, deliver afterwards'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "healthcheck" -d 'Check the configuration, the Opik server, access to it, the store and its disk'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "status" -d 'Show the connection, the agent and what is stored'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "replay" -d 'Deliver stored messages to the Opik server'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "inspect" -d 'List stored messages, or show one whole'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "purge" -d 'Delete stored messages for good'
complete -c opik-offline -n "__fish_opik_offline_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l listen -d 'Listen on this address [default: 127.0.0.1:6745]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l allowed-hosts -d 'Answer to these hosts too, and take requests of web pages of these origins [default: none]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l batch-size -d 'Replay this many messages, then pause; unset, replay starts at 50 and speeds up while the server keeps up' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l delay -d 'Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-size -d 'Let the store take this much space at most [default: 10GiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l free-disk-reserve -d 'Leave this much space on the disk; unset, a tenth of a small one [default: 256MiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l when-full -d 'When the store is full: refuse or drop_oldest [default: refuse]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l rejected-share -d 'When room is needed, drop the oldest rejected messages beyond this share of the store, in percent [default: 25]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l rejected-export -d 'Write rejected messages to this folder before they are dropped to make room, as JSON lines [default: none]' -r -f -a "(__fish_complete_directories)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-age -d 'Drop messages that wait longer than this [default: none]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-attempts -d 'Reject a message that failed alone this many times [default: 10]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-body-size -d 'Keep no body larger than this as sent: it streams through [default: 500MiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-inflated-size -d 'Keep no body larger than this when decoded: it streams through [default: 512MiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-attachment-size -d 'Refuse files of attachments larger than this [default: 5GiB]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l max-connections -d 'Take this many connections of clients at once; past it the longest idle one is closed [default: 4096]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l memory-budget -d 'Let bodies take this much memory, of clients and of replay; unset, 256MiB, and less in a small container' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l client-timeout -d 'Close the connection of a client that is silent for this long [default: 2m]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l client-cert-file -d 'Show this certificate to the server (mTLS), a PEM file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l client-key-file -d 'The private key of that certificate, where it is not in the same file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l upstream-headers-file -d 'Send the headers in this file to the server, one `Name: value` a line' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l connect-timeout -d 'Give up connecting to the server after this long [default: 5s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l forward-timeout -d 'Store a write that the server has not answered after this long [default: 1m35s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l retry-interval -d 'Try a held lane again after this long: no valid key, a redirect, a server that fails at everything [default: 10s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l shutdown-timeout -d 'Let requests in progress finish for this long when stopping [default: 10s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l flush-timeout -d 'Deliver for this long after the command has ended [default: 30s]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l log-format -d 'Write log lines as text or json [default: text]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l insecure-listen -d 'Listen beyond this machine without asking for an intake token'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l adopt-orphans -d 'Take in what killed Python processes leave, and deliver it'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l rekey-refused -d 'Give messages whose key the server refuses (401, 403) the configured key, for the same server and workspace'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l all-otlp-traces -d 'Lead all OTLP traces of the command to Opik, not only those that went there before'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -s q -l quiet -d 'Say only what was asked for, and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -s v -l verbose -d 'Say more on standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -l no-color -d 'Use no colours, as with NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand agent" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l wait -d 'Keep checking for this long until all is well' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l project-name -d 'The project that the smoke test writes to' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l full -d 'Read the store page by page even when it is large, which takes some 20 seconds a gigabyte'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l smoke-test -d 'Write a trace with a span and an image to the server and read it back, when all else is well'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l reseal -d 'Keep all that is stored as the settings ask for, encrypted or not, and leave nothing of before in the files; asks no server'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -s q -l quiet -d 'Say only what was asked for, and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -s v -l verbose -d 'Say more on standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -l no-color -d 'Use no colours, as with NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand healthcheck" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l fail-if-backlog -d 'Exit with 4 when more than this many messages wait' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l fail-if-older-than -d 'Exit with 4 when a message has been waiting longer than this' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l watch -d 'Show it again every 2 seconds until interrupted'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -s q -l quiet -d 'Say only what was asked for, and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -s v -l verbose -d 'Say more on standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -l no-color -d 'Use no colours, as with NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l batch-size -d 'Replay this many messages, then pause' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l delay -d 'Pause this long after a full batch; unset, replay starts at 500ms and speeds up while the server keeps up' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l limit -d 'Stop after this many messages' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l timeout -d 'Stop after this long, and keep trying until then' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l verify-timeout -d 'Ask again for what the server does not show yet, until this long after the delivery' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l from -d 'Take in what a Python process left, then deliver' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l owner -d 'As root, take in the files of this user, a name or a number' -r -f -a "(__fish_complete_users)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l attachments-from -d 'Also send attachments whose files are below this folder' -r -f -a "(__fish_complete_directories)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l status -d 'Only messages with this status (may be given more than once)' -r -f -a "failed\t''
registered\t''
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
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l server -d 'Only messages for this server, by the URL that `status` shows' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l project -d 'Only messages that name this project' -r -f -a '(__opik_offline_values projects)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l id -d 'Only the message with this id' -r -f -a '(__opik_offline_values ids)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l trace -d 'Only messages about this trace or its spans' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l older-than -d 'Only messages older than this, such as 2h or 7d' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l newer-than -d 'Only messages accepted within this time, such as 15m' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l readdress -d 'Deliver what was accepted for this server to --upstream instead' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l lane -d 'With --rekey or --readdress: only this lane, by the number that a --dry-run of it shows' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l verify -d 'Read back what was delivered, report what is missing'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l remove-source -d 'Delete each file of --from, and the SDK\'s temporary copies of attachments, once every message in it is stored'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l dry-run -d 'Show what would be replayed, and send nothing'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l rejected -d 'Only rejected messages (--status rejected)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l rekey -d 'Give lanes whose key the server refuses the configured key'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s y -l yes -d 'With --rekey or --readdress: do not ask'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s q -l quiet -d 'Say only what was asked for, and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s v -l verbose -d 'Say more on standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -l no-color -d 'Use no colours, as with NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand replay" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l from -d 'List what a Python process left in this file' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l owner -d 'As root, look into a file of this user, a name or a number' -r -f -a "(__fish_complete_users)"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l limit -d 'List this many messages at most; 0 lists all [default: 50]' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l status -d 'Only messages with this status (may be given more than once)' -r -f -a "failed\t''
registered\t''
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
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l server -d 'Only messages for this server, by the URL that `status` shows' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l project -d 'Only messages that name this project' -r -f -a '(__opik_offline_values projects)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l id -d 'Only the message with this id' -r -f -a '(__opik_offline_values ids)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l trace -d 'Only messages about this trace or its spans' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l older-than -d 'Only messages older than this, such as 2h or 7d' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l newer-than -d 'Only messages accepted within this time, such as 15m' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l newest -d 'List the newest first'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l follow -d 'Show messages as they are stored, from now on'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l no-pager -d 'Show a long result on a terminal without a pager'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l rejected -d 'Only rejected messages (--status rejected)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -s q -l quiet -d 'Say only what was asked for, and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -s v -l verbose -d 'Say more on standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -l no-color -d 'Use no colours, as with NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l status -d 'Only messages with this status (may be given more than once)' -r -f -a "failed\t''
registered\t''
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
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l server -d 'Only messages for this server, by the URL that `status` shows' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l project -d 'Only messages that name this project' -r -f -a '(__opik_offline_values projects)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l id -d 'Only the message with this id' -r -f -a '(__opik_offline_values ids)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l trace -d 'Only messages about this trace or its spans' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l older-than -d 'Only messages older than this, such as 2h or 7d' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l newer-than -d 'Only messages accepted within this time, such as 15m' -r
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l db -d 'Use this message store' -r -F
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l upstream -d 'Use this Opik server, such as http://127.0.0.1:5173/api' -r -f
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l format -d 'Write results in this format' -r -f -a "table\t'Tables and sentences for people'
json\t'One JSON document'
jsonl\t'One JSON document a line (`inspect` only)'
yaml\t'One YAML document'"
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l dry-run -d 'Show what would be deleted, and delete nothing'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s y -l yes -d 'Delete without asking'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l rejected -d 'Only rejected messages (--status rejected)'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s q -l quiet -d 'Say only what was asked for, and errors'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s v -l verbose -d 'Say more on standard error'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -l no-color -d 'Use no colours, as with NO_COLOR in the environment'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand purge" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "agent" -d 'Run the agent: pass on, store while the server is away, deliver afterwards'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "healthcheck" -d 'Check the configuration, the Opik server, access to it, the store and its disk'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "status" -d 'Show the connection, the agent and what is stored'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "replay" -d 'Deliver stored messages to the Opik server'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "inspect" -d 'List stored messages, or show one whole'
complete -c opik-offline -n "__fish_opik_offline_using_subcommand help; and not __fish_seen_subcommand_from agent healthcheck status replay inspect purge help" -f -a "purge" -d 'Delete stored messages for good'
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
