# Answers each line of standard input with nanoseconds: what bash reads, a fork of it, or another program.
now() { echo "${EPOCHREALTIME/[.,]/}000"; }
while read -r line; do
  case $line in
    here) now ;;
    fork) echo "$(now)" ;;
    child) date +%s%N ;;
    loop)
      for _ in {1..20}; do last=$(date +%s%N); done
      echo "$last"
      ;;
  esac
done
